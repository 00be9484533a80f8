"""Picks the attention kernel that this machine can run, from the one that was asked for."""

from collections.abc import Callable

from transformers.utils import logging

from moe_hf.base.optional import OPTIONAL_PACKAGES

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
