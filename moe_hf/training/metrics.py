"""Numbers about a training run: how routers spread tokens, tokens per second, share of peak FLOP/s, bits per byte.

Shapes: T tokens, E experts, K experts per token, L sparse layers.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_hf.base.files import atomic_file
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.ops.routing.balance import expert_counts

METRICS_NAME = "metrics.jsonl"
"""File in a run's folder with one JSON object per logged event."""

# Dense bfloat16 (float16 on V100 and T4) FLOP/s by a word of the device's name, from the vendor's data sheets. The
# first match counts.
_PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


class LayerRouting(NamedTuple):
    """How the routers behaved over a logging window: one entry per sparse layer, from the first to the last.

    `load` holds the share of the routed slots that each expert got; each layer's sum is 1. `load_max` is the largest
    share over the mean one, 1.0 to E. `entropy` is the mean entropy of a token's router probabilities divided by its
    largest possible value, 0 (certain) to 1 (undecided). `dead_experts` counts those that got no token at all.
    `aux_loss` is the unscaled load-balance loss of each forward (1.0 = balanced), `z_loss` the unscaled router z-loss,
    both by softmax whatever the router is; `dropped` is the share of slots that a capacity limit dropped.
    `trained_aux_loss` is the one number that the model itself trains with, by its `router_balance_loss`.
    """

    load: list[list[float]]
    load_max: list[float]
    entropy: list[float]
    dead_experts: list[int]
    aux_loss: list[float]
    z_loss: list[float]
    dropped: list[float]
    trained_aux_loss: float

    def scalars(self) -> dict[str, float]:
        """A few numbers for all layers: means, but the largest `load_max` and the sum of the dead experts."""
        return {
            "aux_loss": self.trained_aux_loss,
            "z_loss": math.fsum(self.z_loss) / len(self.z_loss),
            "router_entropy": math.fsum(self.entropy) / len(self.entropy),
            "load_max": max(self.load_max),
            "dead_experts": sum(self.dead_experts),
            **({"dropped": math.fsum(self.dropped) / len(self.dropped)} if any(self.dropped) else {}),
        }


class RoutingMeter:
    """Sums up router logits over a logging window, on the device and without waiting for it unless there is padding.

    It reads what a forward returned. So nothing is counted twice when activation checkpointing runs a layer again,
    and nothing is counted that the caller does not hand in.
    """

    def __init__(self, num_experts_per_tok: int) -> None:
        self.num_experts_per_tok = num_experts_per_tok
        # (L, E + 6): slots per expert, then sums over tokens of entropy, z-loss, balance loss, dropped share, the loss
        # that is trained with, and 1.
        self.sums: torch.Tensor | None = None

    @torch.no_grad()
    def update(
        self,
        router_logits: Sequence[torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        router_experts: Sequence[torch.Tensor] | None = None,
        router_dropped: Sequence[torch.Tensor] | None = None,
        aux_loss: torch.Tensor | None = None,
    ) -> None:
        """Count one forward.

        Args:
            router_logits: one raw (T, E) tensor per sparse layer.
            attention_mask: T entries, nonzero at tokens that count; None counts all.
            router_experts: the experts that each layer's router chose, (T, K), an id of E being an empty slot; None
                for models that do not tell, whose routers are taken for plain top-k.
            router_dropped: the share of the slots that a capacity limit dropped, per sparse layer; None or empty where
                there is no limit.
            aux_loss: the unscaled balance loss that the model trains with, if it says so.
        """
        device = router_logits[0].device
        logits_LTE = torch.stack([logits.detach().float().to(device) for logits in router_logits])
        num_tokens, num_experts = logits_LTE.shape[1:]
        if router_experts is None:
            router_experts = logits_LTE.topk(self.num_experts_per_tok, dim=-1).indices.unbind()
        mask_T = None
        if attention_mask is not None and attention_mask.numel() == num_tokens:
            mask_T = attention_mask.reshape(-1).to(device) != 0
            logits_LTE = logits_LTE[:, mask_T]
            num_tokens = logits_LTE.shape[1]
        weight_T = None if mask_T is None else mask_T.float()
        count_LE = torch.stack([expert_counts(chosen.to(device), num_experts, weight_T) for chosen in router_experts])
        z_LT = logits_LTE.logsumexp(dim=-1)
        prob_LTE = (logits_LTE - z_LT[..., None]).exp()
        # Entropy is logsumexp - sum of p * logit: finite even where a logit is far below the others.
        entropy_L = (z_LT - (prob_LTE * logits_LTE).sum(dim=-1)).sum(dim=-1)
        slots_L = count_LE.sum(dim=-1).clamp(min=1)
        balance_L = num_experts * (count_LE * prob_LTE.sum(dim=1)).sum(dim=-1) / slots_L
        dropped_L = torch.zeros_like(balance_L)
        if router_dropped:
            dropped_L = num_tokens * torch.stack([dropped.float().to(device) for dropped in router_dropped])
        tokens_L = torch.full_like(balance_L, num_tokens)
        # Where the model says nothing, the usual loss of the same layers.
        trained = balance_L.mean() if aux_loss is None else num_tokens * aux_loss.detach().float().to(device)
        columns = [entropy_L, z_LT.square().sum(dim=-1), balance_L, dropped_L, trained.expand_as(balance_L), tokens_L]
        new = torch.cat([count_LE, torch.stack(columns, dim=-1)], dim=-1)
        # float32 cannot count beyond 16 million; Metal has nothing wider.
        new = new if new.device.type == "mps" else new.double()
        self.sums = new if self.sums is None else self.sums + new

    def reset(self) -> None:
        """Begin a new window."""
        self.sums = None


def routing_of_window(sums: torch.Tensor) -> LayerRouting:
    """What a `RoutingMeter`'s sums, added up over all processes, say about each layer."""
    sums = sums.double().cpu()
    count_LE, columns = sums[:, :-6], sums[:, -6:].unbind(dim=-1)
    entropy_L, z_L, balance_L, dropped_L, trained_L, tokens_L = columns
    num_experts = count_LE.shape[-1]
    load_LE = count_LE / count_LE.sum(dim=-1, keepdim=True).clamp(min=1)
    tokens_L = tokens_L.clamp(min=1)
    return LayerRouting(
        load=load_LE.tolist(),
        load_max=(load_LE.amax(dim=-1) * num_experts).tolist(),
        entropy=(entropy_L / tokens_L / math.log(max(2, num_experts))).tolist(),
        dead_experts=(count_LE == 0).sum(dim=-1).tolist(),
        aux_loss=(balance_L / tokens_L).tolist(),
        z_loss=(z_L / tokens_L).tolist(),
        dropped=(dropped_L / tokens_L).tolist(),
        trained_aux_loss=(trained_L / tokens_L)[0].item(),
    )


class CrossEntropyMeter:
    """Mean cross-entropy of a logging window over the labels that evaluation would count, and nothing else.

    What is trained may have router losses, smoothing and the labels of prompts in it as well.
    """

    def __init__(self) -> None:
        # Sum of nats, and number of labels.
        self.sums: torch.Tensor | None = None

    @torch.no_grad()
    def update(self, logits_BSV: torch.Tensor, labels_BS: torch.Tensor, answers_BS: torch.Tensor | None = None) -> None:
        """Count one forward.

        Args:
            logits_BSV: of each position's next token.
            labels_BS: the input ids themselves (they are shifted here); -100 where no loss is wanted.
            answers_BS: False at labels that evaluation would not count; None counts all.
        """
        target_BS = labels_BS if answers_BS is None else labels_BS.masked_fill(~answers_BS, -100)
        target_BS = target_BS[:, 1:].to(logits_BSV.device)
        # Row by row: in float32 the logits of a whole batch are large.
        nats = [
            nn.functional.cross_entropy(logits_SV[:-1].float(), target_S, reduction="sum")
            for logits_SV, target_S in zip(logits_BSV, target_BS, strict=True)
        ]
        self._add(torch.stack(nats).sum(), target_BS)

    @torch.no_grad()
    def update_by_mean(self, mean: torch.Tensor, labels_BS: torch.Tensor) -> None:
        """Count one forward whose model has worked it out already: at 50,000 words a tenth of a small model's step.

        Args:
            mean: over all labels but each row's first, nats.
            labels_BS: as in `update`.
        """
        target_BS = labels_BS[:, 1:].to(mean.device)
        self._add(mean.float() * (target_BS != -100).sum(), target_BS)

    def _add(self, nats: torch.Tensor, target_BS: torch.Tensor) -> None:
        new = torch.stack([nats, (target_BS != -100).sum().float()])
        new = new if new.device.type == "mps" else new.double()
        self.sums = new if self.sums is None else self.sums + new

    def reset(self) -> None:
        """Begin a new window."""
        self.sums = None


class SpeedMeter:
    """Counts this process's training tokens and FLOPs, and the time in which they were done."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new window now."""
        self.tokens: int | torch.Tensor = 0
        self.flops, self._paused = 0.0, 0.0
        self._begun = time.perf_counter()

    def add(self, tokens: int | torch.Tensor, flops: float) -> None:
        """Count one micro-batch; a tensor is waited for when the window is read."""
        self.tokens += tokens
        self.flops += flops

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside, on evaluating or saving, is not training time."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begun

    def read(self, num_processes: int, peak_flops: float | None) -> dict[str, float]:
        """`tokens_per_second` of all processes and, where the peak is known, `mfu` in [0, 1]; empty without tokens.

        Args:
            num_processes: that train on batches of their own, all as fast as this one.
            peak_flops: of one device; None leaves `mfu` out.
        """
        seconds = time.perf_counter() - self._begun - self._paused
        if not self.tokens or seconds <= 0:
            return {}
        speed = {"tokens_per_second": num_processes * float(self.tokens) / seconds}
        if peak_flops:
            speed["mfu"] = self.flops / seconds / peak_flops
        return speed


class TrainingFlops(NamedTuple):
    """What a token costs in training: 6 FLOPs per weight that it meets, and attention (Chowdhery et al. 2022, app. B).

    `weights` counts the weights that multiply one token: of E experts the K that it visits, the head but no embedding.
    `attention_width` is the sum over layers of the width of queries. Of MegaByte, whose token is a byte, both are
    those of a patch shared out among its bytes; the local decoder's attention, whose reach is fixed, is in `weights`.
    """

    weights: float
    attention_width: float

    def of_batch(self, num_tokens: int, length: int) -> float:
        """FLOPs of forward and backward for `num_tokens` in sequences of `length`, as if no pair were masked."""
        return num_tokens * (6 * self.weights + 12 * self.attention_width * length)


def training_flops(model: nn.Module) -> TrainingFlops | None:
    """The costs of a causal language model's token; None for models that say nothing about layers and width."""
    config = getattr(model, "config", None)
    config = None if config is None else config.get_text_config()
    num_layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if num_layers is None or width is None:
        return None
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    # Families differ in what they call it; `attribute_map` covers some.
    num_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    visited = (experts_per_token(model) or 1) / (num_experts or 1)
    attention_width: float = num_layers * width
    weights, share = 0.0, {"experts": visited}
    if isinstance(config, MegaByteWithMoEConfig):
        size, local, places = config.patch_size, config.local_decoder_config, config.patch_size + config.lookback
        share |= {"global_decoder": 1 / size, "local_decoder": places / size}
        # One query and key per patch.
        attention_width /= size**2
        weights += 2 * local.num_hidden_layers * local.hidden_size * places**2 / size
    for name, parameter in model.named_parameters():
        if id(parameter) not in embeddings:
            weights += parameter.numel() * math.prod(share.get(part, 1) for part in name.split("."))
    # A tied head is an embedding by its parameter, and yet it multiplies.
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if isinstance(head, nn.Linear) and id(head.weight) in embeddings:
        weights += head.weight.numel()
    return TrainingFlops(weights, attention_width)


def experts_per_token(model: nn.Module) -> int | None:
    """K of an MoE, as its configuration has it; None for a dense model."""
    config = getattr(model, "config", None)
    return None if config is None else getattr(config.get_text_config(), "num_experts_per_tok", None)


def known_peak_flops(device: torch.device) -> float | None:
    """The dense half-precision FLOP/s in the data sheet of a CUDA device; None for any other device.

    Not for float32 training, whose peak is lower.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in _PEAK_FLOPS.items() if word in name), None)


def bytes_per_label(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> float | None:
    """UTF-8 bytes of the text of all labels that a causal model predicts, by their number; None without any text.

    Special tokens are labels without text: what they cost is part of what the text costs.

    Args:
        rows: each with "labels", ids of the tokenizer or -100; the first label of a row is not predicted.
        tokenizer: that made them.
    """
    num_bytes = num_labels = 0
    for row in rows:
        ids = [label for label in row["labels"][1:] if label != -100]
        num_labels += len(ids)
        num_bytes += len(str(tokenizer.decode(ids, skip_special_tokens=True)).encode())
    return num_bytes / num_labels if num_bytes else None


def bits_per_byte(loss: float, bytes_per_label: float) -> float:
    """A loss in a unit that does not depend on the tokenizer.

    Args:
        loss: mean cross-entropy in nats per label.
        bytes_per_label: of the same labels.

    >>> bits_per_byte(math.log(16), 2)
    2.0
    """
    return loss / math.log(2) / bytes_per_label


def append_metrics(output_dir: str, record: Mapping[str, Any]) -> None:
    """Add one line to `metrics.jsonl`.

    Every line has "step". A training line has "loss" (all that is trained), "cross_entropy" (what evaluation would
    measure: of the answers alone), "learning_rate", "grad_norm", "epoch", "tokens_per_second" and,
    for an MoE, the scalars of `LayerRouting.scalars` and "layers", an object of the lists of `LayerRouting`. A line
    with "eval_loss" is an evaluation ("eval_bits_per_byte" is the same in another unit); the one with "train_loss"
    closes the run.
    """
    path = Path(output_dir, METRICS_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(output_dir: str) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, oldest first, up to a line that is none, such as one that a kill cut short."""
    path = Path(output_dir, METRICS_NAME)
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def keep_metrics_until(output_dir: str, step: int, log_history: Sequence[Mapping[str, Any]]) -> None:
    """Forget what `metrics.jsonl` says of anything after a checkpoint, which a resumed run will do again.

    Args:
        output_dir: folder of the run.
        step: of the checkpoint; 0 forgets all.
        log_history: of the checkpoint; what it does not have of this very step came after it, such as the evaluation
            of a run that was killed at its end.
    """
    path = Path(output_dir, METRICS_NAME)
    if not path.is_file():
        return
    records = read_metrics(output_dir)
    kept = [record for record in records if record["step"] < step]
    known = sum(entry.get("step") == step for entry in log_history)
    at_step = [record for record in records if record["step"] == step and "train_runtime" not in record]
    kept += at_step[:known] if step else []
    with atomic_file(path) as aside:
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
