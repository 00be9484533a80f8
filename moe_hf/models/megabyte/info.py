"""Counts a MegaByte configuration's parameters and FLOPs from those of its two decoders."""

from typing import Any

from moe_hf.config.megabyte import MegaByteWithMoEConfig

_ADDED = (
    "total_params active_params dense_twin_params embedding_params weight_bytes train_state_bytes moe_layers "
    "dense_layers"
).split()
_MILLIONS = ("total_params", "active_params", "dense_twin_params", "embedding_params")
# Bytes per parameter of what is counted in bytes: float32, and with AdamW's copies.
_BYTES = {"weight_bytes": 4, "train_state_bytes": 16}


def megabyte_info(config: MegaByteWithMoEConfig, of_global: dict[str, Any], of_local: dict[str, Any]) -> dict[str, Any]:
    """What `get_moe_model_info` says about a whole MegaByte; a token is a byte.

    Args:
        config: of the whole.
        of_global: what it says about `config.global_config`.
        of_local: what it says about `config.local_config`.
    """
    size, width, local = config.patch_size, config.hidden_size, config.local_decoder_config
    # The global decoder has neither the one id nor, untied, the head of one id that its configuration names.
    absent = width if config.tie_word_embeddings else 2 * width
    embedding, bridge = config.vocab_size * width // size, width // size * local.hidden_size
    more = embedding + width + bridge + local.hidden_size - absent
    info = {**of_global, **{name: of_global[name] + of_local[name] for name in _ADDED}}
    for name in ("total_params", "active_params", "dense_twin_params"):
        info[name] += more
    info["embedding_params"] += embedding - width
    for name, copies in _BYTES.items():
        info[name] += copies * more
    info.update({f"{name}_m": info[name] / 1e6 for name in _MILLIONS})
    info["active_non_embedding_params_m"] = (info["active_params"] - info["embedding_params"]) / 1e6
    info["active_fraction"] = info["active_params"] / info["total_params"]
    info["context_length"] = config.max_position_embeddings
    # The global decoder runs once per patch, and multiplies by no head.
    of_patch = of_global["flops_per_token"] - 2 * width
    head = 2 * config.vocab_size * local.hidden_size
    # The local decoder reads again what it looks back at, but predicts nothing there.
    of_place = of_local["flops_per_token"] - head
    info["flops_per_token"] = of_patch / size + of_place * (size + config.lookback) / size + head + 2 * bridge
    return info
