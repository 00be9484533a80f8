"""One sparse layer, and one block around it, with every experts backend, beside the dense one of as many FLOPs.

transformers' backends run here as its users have them: with its activation and, "eager", its loop.

Shapes: B sequences, S positions, T = B * S tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.arms import ROOF, TRAINING, Arm, Check, Group, Options, Output, Skipped, output_of, step_of
from moe_hf.bench.speed.configs import batch_shape, moe_config
from moe_hf.bench.speed.opponents import TRANSFORMERS_BACKENDS, Weights, batched_obstacle, family_of, stock_experts
from moe_hf.bench.speed.reference import ReferenceExperts
from moe_hf.bench.speed.router_case import draw_tokens
from moe_hf.bench.speed.sizes import Size, expert_flops
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.inputs import LayerInputs
from moe_hf.models.decoder import DecoderLayer

DENSE = "dense, equal FLOPs"


def build_layer(size: Size, mode: str, options: Options) -> Group:
    """`SparseFFN`, router included, beside a dense FFN as wide as the K experts of a token together."""
    dense = partial(_dense_ffn, moe_config(size, intermediate_size=size.k * size.expert_width))
    return _build("layer", size, mode, options, SparseFFN, dense, _call_ffn)


def build_block(size: Size, mode: str, options: Options) -> Group:
    """`DecoderLayer`: norms, attention and the sparse FFN, beside the same with the dense FFN of as many FLOPs."""
    config = moe_config(size, intermediate_size=size.k * size.expert_width, mlp_layer_types=["dense"])
    return _build("block", size, mode, options, _block, partial(_block, config), _call_block)


def layer_backends(size: Size, options: Options, training: bool) -> tuple[list[str], list[Skipped]]:
    """The experts backends that a layer of this size can be measured with, and the others with the reason."""
    names, skipped = [], []
    for name in [*TRANSFORMERS_BACKENDS, *EXPERTS_BACKENDS]:
        if not options.wants(name):
            continue
        obstacle = batched_obstacle(size, options, training) if name == "batched_mm" else None
        if obstacle is None:
            names.append(name)
        else:
            skipped.append(Skipped(name, obstacle))
    return names, skipped


def exchange_experts(module: nn.Module, config: GPT2WithMoEConfig, reference: bool = False) -> None:
    """Put transformers' experts, or the reference, in the place of this package's, with the same weights.

    Args:
        module: whatever holds sparse layers.
        config: says in `experts_implementation` which of transformers' backends is meant.
        reference: take `ReferenceExperts` instead.
    """
    for ffn in list(module.modules()):
        if isinstance(ffn, SparseFFN):
            own: Any = ffn.experts
            weights = Weights(*(getattr(own, field) for field in Weights._fields))
            if reference:
                ffn.experts = ReferenceExperts(weights, config.hidden_act)
            else:
                ffn.experts = stock_experts(config, weights, own._is_expert_parallel)


@contextmanager
def in_dtype(module: Any, dtype: torch.dtype) -> Iterator[None]:
    """The module in a dtype, no narrower than its own, for a while; its weights come back as they were."""
    own = next(module.parameters()).dtype
    module.to(dtype)
    try:
        yield
    finally:
        module.to(own)


def drawn(make: Callable[[], nn.Module], size: Size, options: Options) -> nn.Module:
    """A module with weights from the seed that keep the variance of what passes through."""
    module = make()
    generator = options.generator()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 or name.endswith("bias"):
                # Scales of norms stay near 1, biases near 0.
                values = values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                values = values * parameter.shape[-1] ** -0.5
            parameter.copy_(values)
    return module.to(options.device, size.torch_dtype)


class _Pass(NamedTuple):
    """What every arm of a case is called with; without a gradient of the result it is a pass without gradients."""

    case: str
    size: Size
    call: Callable[..., torch.Tensor]
    x_BSD: torch.Tensor
    token_ids_BS: torch.Tensor
    grad_BSD: torch.Tensor | None

    @property
    def training(self) -> bool:
        return self.grad_BSD is not None


def _build(
    case: str,
    size: Size,
    mode: str,
    options: Options,
    make: Callable[[GPT2WithMoEConfig], nn.Module],
    make_dense: Callable[[], nn.Module],
    call: Callable[..., torch.Tensor],
) -> Group:
    x_TD, token_ids_T = draw_tokens(size, options)
    shape = batch_shape(size)
    x_BSD = x_TD.view(*shape, -1).requires_grad_()
    grad_BSD = torch.randn(x_BSD.shape, generator=options.generator()).to(x_BSD) if mode == TRAINING else None
    given = _Pass(case, size, call, x_BSD, token_ids_T.view(shape), grad_BSD)
    sparse = partial(_sparse, make, size, options)
    names, skipped = layer_backends(size, options, given.training)
    reference = _output(given, sparse("eager", reference=True))
    arms = []
    for name in names:
        try:
            module = sparse(name)
        except ConfigError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        arms.append(_arm(given, name, family_of(name), module)._replace(check=Check(_output(given, module), reference)))
    return Group([*arms, _arm(given, DENSE, ROOF, drawn(make_dense, size, options))], skipped)


def _output(given: _Pass, module: nn.Module) -> Output:
    # Attention's smallest gradients are nothing but rounding in less than float32.
    dtype = torch.float32 if given.case == "block" else given.x_BSD.dtype
    leaf_BSD = given.x_BSD.detach().to(dtype).requires_grad_()
    forward = partial(given.call, module.train(given.training), leaf_BSD, given.token_ids_BS)
    grad = None if given.grad_BSD is None else given.grad_BSD.to(dtype)

    def output() -> list[torch.Tensor]:
        with in_dtype(module, dtype):
            return output_of(forward, [leaf_BSD, *module.parameters()], grad)()

    return output


def _arm(given: _Pass, name: str, family: str, module: nn.Module) -> Arm:
    forward = partial(given.call, module.train(given.training), given.x_BSD, given.token_ids_BS)

    def known() -> list[torch.Tensor]:
        # Asked for each time: a change of dtype and back makes new buffers.
        return [given.x_BSD, *module.parameters(), *module.buffers()]

    returned = sum(tensor.numel() * tensor.element_size() for tensor in known())
    return Arm(
        name,
        step_of(forward, [given.x_BSD, *module.parameters()], given.grad_BSD),
        family,
        saved=forward if given.training else None,
        known=known,
        flops=expert_flops(given.size, given.training) if given.case == "layer" else 0.0,
        gradient_bytes=returned if given.training and family != ROOF else 0,
    )


def _sparse(
    make: Callable[[GPT2WithMoEConfig], nn.Module], size: Size, options: Options, backend: str, reference: bool = False
) -> nn.Module:
    config = moe_config(size, experts_implementation=backend)
    module = drawn(partial(make, config), size, options)
    if reference or backend in TRANSFORMERS_BACKENDS:
        exchange_experts(module, config, reference)
    return module


def _dense_ffn(config: GPT2WithMoEConfig) -> nn.Module:
    return DenseFFN(config)


def _block(config: GPT2WithMoEConfig) -> nn.Module:
    return DecoderLayer(config, 0)


def _call_ffn(ffn: Any, x_BSD: torch.Tensor, token_ids_BS: torch.Tensor) -> torch.Tensor:
    return ffn(x_BSD, LayerInputs(token_ids=token_ids_BS))


def _call_block(block: Any, x_BSD: torch.Tensor, token_ids_BS: torch.Tensor) -> torch.Tensor:
    position_ids = torch.arange(x_BSD.shape[1], device=x_BSD.device)[None]
    return block(x_BSD, LayerInputs(token_ids=token_ids_BS, position_ids=position_ids))
