"""Muon for the hidden matrices and expert stacks of a model, AdamW for the rest, as one optimizer.

Shapes: E experts, R rows, C columns; n matrices of one piece.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import get_parameter_names

from moe_hf.base.errors import ConfigError
from moe_hf.models.decoder import MoEPreTrainedModel
from moe_hf.ops.newton_schulz import NewtonSchulzRoom, newton_schulz_in

# Elements of one Newton-Schulz batch: on a CPU for each thread, so that its matrices stay in the core's cache from
# product to product; another device is kept busy by 256 MB in float32.
_CPU_BATCH_ELEMENTS, _BATCH_ELEMENTS = 2**18, 2**26
_FUSED_DEVICES = ("cpu", "cuda")
# As in transformers' Trainer.get_decay_parameter_names.
_NEVER_DECAYED = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class _Piece(NamedTuple):
    """Matrices [start, stop) of a parameter of a Muon group; a plain matrix is a stack of one."""

    parameter: torch.Tensor
    start: int
    stop: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """These matrices of a tensor of the parameter's shape, (n, R, C), as a view."""
        return tensor[None] if tensor.ndim == 2 else tensor[self.start : self.stop]


class MoEMuon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and stacks of matrices, AdamW for everything else.

    Two kinds of parameter groups, told apart by their key "kind". A "muon" group holds (R, C) and (E, R, C) tensors;
    each matrix of a stack is treated on its own. Its update is

        momentum = beta * momentum + (1 - beta) * gradient
        weight   = (1 - lr * weight_decay) * weight - lr * sqrt(max(1, outputs / inputs)) * O

    with O = Newton-Schulz of (1 - beta) * gradient + beta * momentum (Nesterov), the nearest half-orthogonal matrix.
    Matrices of one size, of all layers and experts, go through Newton-Schulz in batches. An "adamw" group is
    `torch.optim.AdamW`, fused where the device has it.

    Args:
        groups: as `moe_muon` makes them. Keys of "muon": params, lr, momentum, weight_decay, transposed (True where
            the weights are stored as (inputs, outputs)). Keys of "adamw": params, lr, betas, eps, weight_decay.
        precision: that Newton-Schulz computes in; None as in `newton_schulz`. Momentum keeps the weights' own.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], precision: torch.dtype | None = None) -> None:
        groups = list(groups)
        # A polynomial schedule asks the defaults for the rate that it begins with.
        rates = [group["lr"] for group in groups if "lr" in group]
        super().__init__(groups, {"lr": rates[-1]} if rates else {})
        self.precision = precision
        for group in self.param_groups:
            if group["kind"] == "muon" and any(p.ndim not in (2, 3) for p in group["params"]):
                shapes = sorted({tuple(p.shape) for p in group["params"] if p.ndim not in (2, 3)})
                raise ConfigError(f"Muon takes matrices and stacks of matrices, got {shapes}; put them into 'adamw'")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["kind"] == "muon":
                self._muon_step(group, parameters)
            elif parameters:
                self._adamw_step(group, parameters)
        return loss

    def _muon_step(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        if parameters:
            momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        for bucket in _same_sizes(parameters).values():
            room = None
            for batch in _batches(bucket):
                count = sum(stop - start for _, start, stop in batch)
                # The first batch of a size is the largest.
                if room is None:
                    like_1RC = batch[0].of(batch[0].parameter)[:1]
                    room = NewtonSchulzRoom.like(like_1RC.expand(count, -1, -1), self.precision)
                self._move(group, batch, room.first(count))

    def _move(self, group: dict[str, Any], batch: list[_Piece], room: NewtonSchulzRoom) -> None:
        counts = [stop - start for _, start, stop in batch]
        for piece, direction_nRC in zip(batch, room.matrix_NRC.split(counts), strict=True):
            gradient, momentum = piece.parameter.grad, self.state[piece.parameter]["momentum_buffer"]
            assert gradient is not None
            torch.lerp(piece.of(gradient), piece.of(momentum), group["momentum"], out=direction_nRC)
        for piece, update_nRC in zip(batch, newton_schulz_in(room).split(counts), strict=True):
            weight_nRC = piece.of(piece.parameter)
            outputs, inputs = weight_nRC.shape[1:]
            if group["transposed"]:
                outputs, inputs = inputs, outputs
            if group["weight_decay"]:
                weight_nRC.mul_(1 - group["lr"] * group["weight_decay"])
            weight_nRC.add_(update_nRC, alpha=-group["lr"] * max(1.0, outputs / inputs) ** 0.5)

    def _adamw_step(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                # A tensor on the parameter's device, as fused AdamW wants it.
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=all(parameter.device.type in _FUSED_DEVICES for parameter in parameters),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _same_sizes(parameters: Iterable[torch.Tensor]) -> dict[tuple[Any, ...], list[torch.Tensor]]:
    buckets: dict[tuple[Any, ...], list[torch.Tensor]] = defaultdict(list)
    for parameter in parameters:
        # Only these can be side by side in one tensor.
        buckets[(parameter.shape[-2:], parameter.dtype, parameter.device)].append(parameter)
    return buckets


def _batches(parameters: list[torch.Tensor]) -> Iterable[list[_Piece]]:
    """All matrices, cut and joined into batches as large as the first; the last one may be smaller."""
    of_batch = _CPU_BATCH_ELEMENTS * torch.get_num_threads() if parameters[0].is_cpu else _BATCH_ELEMENTS
    most = max(1, of_batch // parameters[0].shape[-2:].numel())
    batch, room = [], most
    for parameter in parameters:
        start, stop = 0, len(parameter) if parameter.ndim == 3 else 1
        while start < stop:
            end = min(stop, start + room)
            batch.append(_Piece(parameter, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


def hidden_matrices(model: nn.Module) -> dict[str, bool]:
    """The trainable weights of a model that Muon shall move, by name; True where they are stored transposed.

    Those are the matrices (R, C) of projections and expert stacks (E, R, C) inside numbered layers, but not routers and
    gates, embeddings, convolutions, norms, biases or the decays and mixing weights of recurrences. What stands outside
    the numbered layers (embeddings, heads) is left out.
    """
    chosen = {}
    for module_name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.Conv1d)):
            continue
        for own_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{own_name}" if module_name else own_name
            if parameter.requires_grad and _is_hidden_matrix(name.split("."), parameter):
                # transformers' Conv1D, GPT-2's linear, stores (inputs, outputs).
                chosen[name] = isinstance(module, Conv1D)
    return chosen


def _is_hidden_matrix(words: list[str], parameter: torch.Tensor) -> bool:
    in_a_layer = any(word.isdigit() for word in words)
    in_experts = "experts" in words
    excluded = any(
        word in ("gate", "router") or word.endswith(("_gate", "bias")) or "conv" in word or "norm" in word
        for word in words
    )
    dimensions = (2, 3) if in_experts else (2,)
    # A matrix of another name is a table of numbers, such as the decay rates A_log of Mamba.
    multiplied = in_experts or words[-1] == "weight"
    # With a side of 1 it is a vector, which has nothing to make orthogonal.
    return in_a_layer and multiplied and not excluded and parameter.ndim in dimensions and min(parameter.shape[-2:]) > 1


def decayed_names(model: nn.Module) -> list[str]:
    """The names of the parameters that weight decay applies to, in every optimizer of this package.

    transformers' rule (no biases, no norms), without what `MoEPreTrainedModel.no_weight_decay` names and what carries
    the mark `_no_weight_decay` of the mamba-ssm package.
    """
    kept = {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    for prefix, module in model.named_modules():
        if isinstance(module, MoEPreTrainedModel):
            kept |= {f"{prefix}.{name}" if prefix else name for name in module.no_weight_decay()}
    return [name for name in get_parameter_names(model, [nn.LayerNorm], _NEVER_DECAYED) if name not in kept]


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All trainable parameters in two groups for any optimizer: decayed, and not (`decayed_names`).

    A plain Trainer has no way to ask a model what must not decay; give it
    `optimizers=(torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=1e-3), None)`.
    """
    decay = set(decayed_names(model))
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [
        {"params": [p for name, p in trainable.items() if name in decay], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable.items() if name not in decay], "weight_decay": 0.0},
    ]


def moe_muon(
    model: nn.Module,
    *,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float = 0.0,
    decay_names: Iterable[str] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float = 0.95,
    precision: torch.dtype | None = None,
) -> MoEMuon:
    """`MoEMuon` for a model: `hidden_matrices` in Muon groups, all other trainable parameters in AdamW groups.

    Args:
        model: not sharded; every process must hold whole matrices.
        learning_rate: of the AdamW groups.
        muon_learning_rate: of the Muon groups; about 0.02, since an update has singular values of about 1.
        weight_decay: of the parameters in `decay_names`, in either kind of group.
        decay_names: names of parameters, as in `model.named_parameters()`; None means `decayed_names(model)`.
        betas, eps: of AdamW.
        momentum: of Muon, in [0, 1).
        precision: as in `MoEMuon`.

    Raises:
        ConfigError: a learning rate that is not positive, or sharded parameters.
    """
    for name, rate in (("learning_rate", learning_rate), ("muon_learning_rate", muon_learning_rate)):
        if rate <= 0:
            raise ConfigError(f"{name} must be > 0, got {rate}")
    muon, decay = hidden_matrices(model), set(decayed_names(model) if decay_names is None else decay_names)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if any(isinstance(parameter, DTensor) for parameter in trainable.values()):
        raise ConfigError("moe_muon needs whole matrices, but this model is sharded; use --optim adamw_torch_fused")
    adam = {"kind": "adamw", "lr": learning_rate, "betas": betas, "eps": eps}
    muon_keys = {"kind": "muon", "lr": muon_learning_rate, "momentum": momentum}
    # AdamW first: the learning rate that Trainer logs is the first group's.
    rest = {name: parameter for name, parameter in trainable.items() if name not in muon}
    groups = [
        {**adam, "weight_decay": weight_decay, "params": [p for name, p in rest.items() if name in decay]},
        {**adam, "weight_decay": 0.0, "params": [p for name, p in rest.items() if name not in decay]},
        *(
            {
                **muon_keys,
                "weight_decay": weight_decay if decays else 0.0,
                "transposed": side,
                "params": [trainable[name] for name, t in muon.items() if t == side and (name in decay) == decays],
            }
            for decays in (True, False)
            for side in (False, True)
        ),
    ]
    return MoEMuon([group for group in groups if group["params"]], precision)
