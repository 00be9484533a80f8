"""Refuses keyword arguments of a forward that would be swallowed, such as one that a new transformers has renamed."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from moe_hf.base.errors import ConfigError

logger = logging.get_logger(__name__)

# What passes through **kwargs to somebody who reads it.
_RECORDED = frozenset({
    "output_attentions", "output_hidden_states",
    "output_router_dropped", "output_router_experts", "output_router_logits",
})  # fmt: skip
_OF_LOSSES = frozenset({"ignore_index", "num_items_in_batch", "shift_labels"})
_OF_DOCUMENTS = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "max_length_q", "max_length_k", "seq_idx"})
# Those of transformers' decorators around forward.
_OF_TRANSFORMERS = frozenset({"debug_io", "debug_io_dir", "is_causal", "prune_layers", "return_dict"})
_OF_ATTENTION = frozenset({
    "attn_block_size", "attn_topk", "attn_topk_blocks", "position_bias", "s_aux", "sliding_window", "softcap",
    # of flash attention
    "deterministic",
    # of flex attention
    "kernel_options",
    # of continuous batching
    "block_table", "cache", "logits_indices", "logits_processor_args", "max_seqlen_k", "max_seqlen_q", "read_index",
    "write_index",
})  # fmt: skip
_KNOWN = _RECORDED | _OF_LOSSES | _OF_DOCUMENTS | _OF_TRANSFORMERS


def refuse_unknown(given: Mapping[str, Any], *, attends: bool) -> None:
    """Let nothing that could change the result pass unread; a mere setting that nobody reads is warned of once.

    Args:
        given: the keyword arguments that a forward has no name for.
        attends: some layer hands them to an attention function.

    Raises:
        ConfigError: one of an unknown name holds more than a number or a word: a tensor, a cache, a mask.
    """
    for name, value in given.items():
        if value is None or name in _KNOWN or (attends and name in _OF_ATTENTION):
            continue
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(
                f"forward got {name}={type(value).__name__}, which nothing in this model reads; leave it out, or give "
                "what it means as input_ids, attention_mask, position_ids, cache or labels"
            )
        if not torch.compiler.is_compiling():
            logger.warning_once(f"forward got {name}={value!r}, which nothing in this model reads; leave it out")
