"""Picks the attention kernel that this machine can run, from the one that was asked for.

Shapes: B batch, S queries, N keys, H query heads, G key heads (H is a multiple), C head width.
"""

from collections.abc import Callable
from functools import cache

import torch
from transformers.utils import logging

from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available, require

logger = logging.get_logger(__name__)

# Each flash version with what is tried next; sdpa is always there and has a flash kernel of its own on CUDA.
_NEXT = {
    "flash_attention_4": "flash_attention_3",
    "flash_attention_3": "flash_attention_2",
    "flash_attention_2": "sdpa",
}
_PACKAGE = {
    "flash_attention_4": "flash_attn_4",
    "flash_attention_3": "flash_attn_3",
    "flash_attention_2": "flash_attn",
}

# Whether FlashAttention-3 is installed; whether it runs on a device is found out at its first use there.
_HAS_FLASH3 = is_available("flash_attn_3")
_FLASH3_DTYPES = (torch.float16, torch.bfloat16)
_FLASH3_MAX_HEAD_WIDTH = 256


def resolve_attn_implementation(requested: str | None, check: Callable[[str | None], str]) -> str:
    """The implementation to use: the requested one, or the next flash version down to sdpa, with one warning.

    Args:
        requested: the name that the user gave; None is the default.
        check: transformers' own check, which returns the name or raises ImportError where its package is absent.
    """
    name, resolved = requested, None
    while resolved is None:
        try:
            resolved = check(name)
        except ImportError:
            if name not in _NEXT:
                raise
            name = _NEXT[name]
    if name != requested:
        logger.warning_once(
            f"attn_implementation={requested!r} needs a package that is not installed; using {name!r} instead. To get "
            f"it: {OPTIONAL_PACKAGES[_PACKAGE[str(requested)]].install}"
        )
    return resolved


def flash_attention3(
    query_BSHC: torch.Tensor,
    key_BNGC: torch.Tensor,
    value_BNGC: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention by FlashAttention-3 (Shah et al. 2024), or by torch's kernels where that cannot run: (B, S, H, C).

    The layout is that of FlashAttention, with positions before heads, not that of torch. Its kernel is used where the
    package is installed, the tensors lie in half precision on a GPU that it was built for, and heads are no wider than
    256; the values are the same everywhere.

    Args:
        query_BSHC, key_BNGC, value_BNGC: queries, keys and values; a key head serves H / G query heads.
        causal: whether a query sees no key after its own place; the last query stands at the last key.
        scale: factor of the logits; None means C ** -0.5.

    >>> x = torch.randn(2, 5, 4, 8)
    >>> flash_attention3(x, x, x, causal=True).shape
    torch.Size([2, 5, 4, 8])
    """
    fits = query_BSHC.dtype in _FLASH3_DTYPES and query_BSHC.shape[-1] <= _FLASH3_MAX_HEAD_WIDTH
    if _HAS_FLASH3 and fits and query_BSHC.is_cuda and _flash3_runs(query_BSHC.device):
        return _flash3(query_BSHC, key_BNGC, value_BNGC, causal, scale)
    query, key, value = (x.transpose(1, 2) for x in (query_BSHC, key_BNGC, value_BNGC))
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if causal and queries != keys:
        # torch's own causal mask places the first query at the first key.
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    out_BHSC = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=True
    )
    if causal and queries > keys:
        # Queries that stand before the first key see none; some of torch's kernels make NaN of that.
        out_BHSC = torch.cat([torch.zeros_like(out_BHSC[:, :, keys:]), out_BHSC[:, :, queries - keys :]], dim=2)
    return out_BHSC.transpose(1, 2)


def _flash3(
    query_BSHC: torch.Tensor, key_BNGC: torch.Tensor, value_BNGC: torch.Tensor, causal: bool, scale: float | None
) -> torch.Tensor:
    kernel = require("flash_attn_3", "flash_attention3").flash_attn_func
    out = kernel(query_BSHC, key_BNGC, value_BNGC, softmax_scale=scale, causal=causal)
    # Its earlier releases return the logarithms of the sums as well.
    return out[0] if isinstance(out, tuple) else out


@cache
def _flash3_runs(device: torch.device) -> bool:
    # The package may import and yet hold no kernel for this GPU; one small call tells.
    probe = torch.zeros(1, 16, 1, 64, dtype=torch.bfloat16, device=device)
    try:
        _flash3(probe, probe, probe, causal=True, scale=None)
        torch.cuda.synchronize(device)
    except (ImportError, RuntimeError, AssertionError) as error:
        logger.warning(
            f"FlashAttention-3 is installed but does not run on {device}; torch's attention is used: {error}"
        )
        return False
    return True
