"""What attention to the k best keys and to the k best blocks share: checks, types, and the softmax in the plain.

Shapes: B batch, H query heads, G key heads (H is a multiple), S queries, N keys, C head width, V width of the values.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import functional as F

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.topk_selection import require_top_k
from moe_hf.ops.dtypes import float32_or_more, without_autocast

Run = TypeVar("Run", bound=Callable[..., Any])


class Inputs(NamedTuple):
    """The tensors of one call, the first three in the dtype of the arithmetic; `mask` may be spans of a mask."""

    query_BHSC: torch.Tensor
    key_BGNC: torch.Tensor
    value_BGNV: torch.Tensor
    mask: torch.Tensor | None
    sink_H: torch.Tensor | None
    seed: torch.Tensor | None


class Softmax(NamedTuple):
    """How logits become weights, with the defaults filled in; 0 stands for no `softcap`."""

    scale: float
    softcap: float
    dropout: float


def prepared(
    query_BHSC: torch.Tensor,
    key_BGNC: torch.Tensor,
    value_BGNV: torch.Tensor,
    top_k: int | float,
    mask: torch.Tensor | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink_H: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Inputs, Softmax]:
    """The tensors ready for either form, and what it does to their logits. Draws the seed of the dropout, if any.

    Raises:
        ConfigError: `top_k` or `dropout` is out of range, or the heads do not divide.
    """
    require_top_k(top_k)
    heads, groups = query_BHSC.shape[1], key_BGNC.shape[1]
    if heads % groups:
        raise ConfigError(f"{heads} query heads do not divide among {groups} key heads; give a multiple")
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
    dtype = float32_or_more(query_BHSC)
    # A number in place of masks of the size of the weights: both passes draw the same ones from it, part by part.
    seed = torch.randint(1 << 62, (), dtype=torch.int64) if dropout else None
    tensors = (query_BHSC.to(dtype), key_BGNC.to(dtype).contiguous(), value_BGNV.to(dtype).contiguous())
    softmax = Softmax(query_BHSC.shape[-1] ** -0.5 if scale is None else scale, softcap or 0.0, dropout)
    return Inputs(*tensors, mask, sink_H, seed), softmax


def in_own_types(run: Run) -> Run:
    """The function with products in the type of their factors, also where autocast is on.

    Its first argument is a tensor or a tuple that begins with one.
    """

    @wraps(run)
    def wrapper(first: Any, *args: Any, **kwargs: Any) -> Any:
        with without_autocast(first if isinstance(first, torch.Tensor) else first[0]):
            return run(first, *args, **kwargs)

    wrapped: Any = wrapper
    return wrapped


def capped(logit: torch.Tensor, softcap: float) -> torch.Tensor:
    """The logits bounded by `softcap`, unless that is 0."""
    return softcap * torch.tanh(logit / softcap) if softcap else logit


def reference_weights(logit_BHSN: torch.Tensor, sink_H: torch.Tensor | None) -> torch.Tensor:
    """The softmax over the keys, hidden ones at minus infinity, and the sinks, which take a share and give nothing."""
    if sink_H is not None:
        sink_BHS1 = sink_H.to(logit_BHSN.dtype)[None, :, None, None].expand_as(logit_BHSN[..., :1])
        return torch.cat([logit_BHSN, sink_BHS1], dim=-1).softmax(dim=-1)[..., :-1]
    # A row that sees nothing gets zeros instead of the softmax's NaN, whose gradient would be NaN as well.
    blind_BHS1 = (logit_BHSN == -torch.inf).all(dim=-1, keepdim=True)
    return logit_BHSN.masked_fill(blind_BHS1, 0.0).softmax(dim=-1).masked_fill(blind_BHS1, 0.0)


def weighted_values(
    weight_BHSN: torch.Tensor, value_BGNV: torch.Tensor, dropout: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output (B, H, S, V) and the weights that dropout left, both in `dtype`."""
    weight_BHSN = F.dropout(weight_BHSN, dropout)
    value_BHNV = value_BGNV.repeat_interleave(weight_BHSN.shape[1] // value_BGNV.shape[1], dim=1)
    return (weight_BHSN @ value_BHNV).to(dtype), weight_BHSN.to(dtype)


def forward_shapes(inputs: Inputs) -> torch.Tensor:
    """An empty output, (B, H, S, V), for the compiler."""
    return inputs.query_BHSC.new_empty(*inputs.query_BHSC.shape[:3], inputs.value_BGNV.shape[-1])


def room_for_gradients(inputs: Inputs) -> list[torch.Tensor]:
    """Zeros for the gradients of queries, keys, values and sinks, the last of no length without sinks.

    Contiguous, whatever the layout of the inputs: that is what the compiler is told.
    """
    zeros = [x.new_zeros(x.shape) for x in inputs[:3]]
    return [*zeros, zeros[0].new_zeros(0 if inputs.sink_H is None else inputs.query_BHSC.shape[1])]


# What has a gradient; the mask has none.
DIFFERENTIABLE = ("query_BHSC", "key_BGNC", "value_BGNV", "sink_H")
