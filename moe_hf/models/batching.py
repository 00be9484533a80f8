"""Which models transformers' continuous batching can take: those whose layers keep keys and values alone."""

from typing import Any

from moe_hf.base.errors import ConfigError

# Of `layer_types`: what the paged cache has allocators for.
_PAGED = ("full_attention", "sliding_attention")


def require_pages(config: Any) -> None:
    """Raises unless every layer keeps what a paged cache can hold.

    Args:
        config: of one of this package's families.

    Raises:
        ConfigError: a layer carries a state, or its attention picks keys by itself.
    """
    kept = {kind for kind in config.layer_types if kind not in _PAGED}
    why = None
    if config.model_type == "megabyte_moe":
        why = "reads bytes in patches"
    elif kept:
        mixers = dict.fromkeys(
            f"a short convolution or token shift beside {mixer}" if kind == "attention_with_state" else mixer
            for mixer, kind in zip(config.mixer_of_layer, config.layer_types, strict=True)
            if kind in kept
        )
        why = f"has layers that carry a state ({', '.join(mixers)})"
    elif "topk" in str(config._attn_implementation):
        why = f"attends by {config._attn_implementation}, which picks its keys itself"
    if why is not None:
        raise ConfigError(
            f"continuous batching pages keys and values alone, and this {config.model_type} {why}; generate takes "
            "padded batches of it"
        )
