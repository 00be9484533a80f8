"""Writes into a GGUF file what the configuration of a model says: sizes, positions, experts and multipliers."""

from typing import Any

from transformers import PreTrainedConfig

from moe_hf.export.architectures import Architecture
from moe_hf.export.rotation import Rotation
from moe_hf.export.tensors import sizes_of


def add_metadata(
    writer: Any, name: str, config: PreTrainedConfig, architecture: Architecture, rotation: Rotation
) -> list[str]:
    """Add the keys of a model's configuration to a file.

    Args:
        writer: gguf's GGUFWriter.
        name: what the file calls the model.
        config: of the model.
        architecture: that llama.cpp computes it by.
        rotation: of its positions.

    Returns:
        What a user should know, a sentence each.
    """
    sizes = sizes_of(config, architecture)
    context, notices = _context(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(sizes.width)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(sizes.ffn)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_heads)
    writer.add_key_length(sizes.head_width)
    writer.add_value_length(sizes.head_width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(sizes.head_width)
    writer.add_rope_freq_base(rotation.base)
    if rotation.scaling != "none":
        writer.add_string(f"{writer.arch}.rope.scaling.type", rotation.scaling)
        writer.add_rope_scaling_factor(rotation.factor)
        if rotation.original:
            writer.add_rope_scaling_orig_ctx_len(rotation.original)
    if sizes.experts:
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(sizes.expert_ffn)
    if sizes.shared_ffn:
        writer.add_expert_shared_feed_forward_length(sizes.shared_ffn)
    if architecture.name.startswith("granite"):
        # llama.cpp divides by the first, and multiplies with the others, as transformers does.
        writer.add_logit_scale(config.logits_scaling)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
    return notices


def _context(config: PreTrainedConfig) -> tuple[int, list[str]]:
    """The longest text that llama.cpp computes as transformers does, and what to say of it."""
    longest = int(config.max_position_embeddings)
    kinds = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
    window = getattr(config, "sliding_window", None)
    if not slides or not window or window >= longest:
        return longest, []
    return window, [
        f"llama.cpp computes this architecture without windows: the file says a context of {window} tokens, the "
        f"window, instead of {longest}, and within it nothing differs"
    ]
