"""Names and arranges a model's tensors as llama.cpp reads them: one after the other, each read when it is written.

Shapes: E experts, D width, F width of an FFN, H heads of C channels, V ids.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from moe_hf.export.architectures import Architecture
from moe_hf.export.rotation import Rotation
from moe_hf.models.dense.lazy_tensors import Computed, Copied, Joined, LazyTensor, Loaded
from moe_hf.models.dense.source import DenseSource


class Sizes(NamedTuple):
    """The sizes of a model that its tensors' shapes are made of; 0 experts for a dense one."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    ffn: int
    experts: int
    expert_ffn: int
    shared_ffn: int


def sizes_of(config: PreTrainedConfig, architecture: Architecture) -> Sizes:
    """The sizes that a configuration says."""
    heads = config.num_attention_heads
    experts = 0
    if architecture.experts is not None:
        experts = getattr(config, "num_local_experts", None) or config.num_experts
    return Sizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        key_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn=config.intermediate_size,
        experts=experts,
        expert_ffn=getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
        shared_ffn=config.shared_expert_intermediate_size if architecture.shares else 0,
    )


def plan_tensors(
    slices: Mapping[str, Any], config: PreTrainedConfig, architecture: Architecture, rotation: Rotation
) -> dict[str, LazyTensor]:
    """The tensors of a GGUF file, by their names there, unread.

    Args:
        slices: the model's tensors by transformers' names, unread.
        config: of the model.
        architecture: that llama.cpp computes it by.
        rotation: of its positions.

    Raises:
        CheckpointError: tensors are missing, left over or of other shapes than the configuration says.
    """
    sizes = sizes_of(config, architecture)
    source = DenseSource(slices, config.model_type, prefix="model.")
    embedding = source.sliced("embed_tokens.weight", (config.vocab_size, sizes.width))
    planned: dict[str, LazyTensor] = {"token_embd.weight": embedding}
    for layer in range(sizes.layers):
        parts = {**_attention(source, layer, config, architecture, sizes), **_ffn(source, layer, architecture, sizes)}
        if getattr(config, "mlp_bias", False):
            parts |= _ffn_biases(source, layer, sizes)
        planned |= {f"blk.{layer}.{name}": value for name, value in parts.items()}
    planned["output_norm.weight"] = source.sliced("norm.weight", (sizes.width,))
    planned |= _head(source, embedding, config, architecture)
    source.raise_if_incomplete()
    if rotation.frequency_factors is not None:
        planned["rope_freqs.weight"] = Loaded(rotation.frequency_factors)
    return planned


def _head(source: DenseSource, embedding: LazyTensor, config: Any, architecture: Architecture) -> dict[str, LazyTensor]:
    tied = bool(config.tie_word_embeddings)
    found = source.head("lm_head.weight", embedding, config, with_head=True, was_tied=tied)
    if tied:
        return {} if architecture.ties_head else {"output.weight": Copied(embedding)}
    return {"output.weight": found["lm_head.weight"]}


def _attention(
    source: DenseSource, layer: int, config: PreTrainedConfig, architecture: Architecture, sizes: Sizes
) -> dict[str, LazyTensor]:
    at = f"layers.{layer}"
    parts: dict[str, LazyTensor] = {
        "attn_norm.weight": source.sliced(f"{at}.input_layernorm.weight", (sizes.width,)),
    }
    wide, narrow = sizes.heads * sizes.head_width, sizes.key_heads * sizes.head_width
    biases = architecture.biases if _has_biases(config) else ""
    for short, name, rows in (("q", "attn_q", wide), ("k", "attn_k", narrow), ("v", "attn_v", narrow)):
        shapes = {"weight": (rows, sizes.width), **({"bias": (rows,)} if short in biases else {})}
        for kind, shape in shapes.items():
            value: LazyTensor = source.sliced(f"{at}.self_attn.{short}_proj.{kind}", shape)
            if short != "v" and architecture.rotates_pairs:
                value = Computed(value, shape, partial(interleaved, head_width=sizes.head_width))
            parts[f"{name}.{kind}"] = value
    parts["attn_output.weight"] = source.sliced(f"{at}.self_attn.o_proj.weight", (sizes.width, wide))
    if "o" in biases:
        parts["attn_output.bias"] = source.sliced(f"{at}.self_attn.o_proj.bias", (sizes.width,))
    if architecture.normed_heads:
        for short in "qk":
            parts[f"attn_{short}_norm.weight"] = source.sliced(
                f"{at}.self_attn.{short}_norm.weight", (sizes.head_width,)
            )
    return parts


def _has_biases(config: PreTrainedConfig) -> bool:
    # Qwen2 always has them, Qwen2-MoE unless it says no, the others where they say so.
    if config.model_type == "qwen2":
        return True
    return bool(getattr(config, "qkv_bias", False) or getattr(config, "attention_bias", False))


def interleaved(rows: torch.Tensor, head_width: int) -> torch.Tensor:
    """Rows of heads reordered from (x of all pairs, y of all pairs) to pair after pair.

    >>> interleaved(torch.arange(8), head_width=4)
    tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    heads = rows.reshape(-1, 2, head_width // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


_HALVES = ("gate", "up", "down")


def _ffn(source: DenseSource, layer: int, architecture: Architecture, sizes: Sizes) -> dict[str, LazyTensor]:
    at = f"layers.{layer}"
    parts: dict[str, LazyTensor] = {
        "ffn_norm.weight": source.sliced(f"{at}.post_attention_layernorm.weight", (sizes.width,)),
    }
    if architecture.experts is None:
        for half in _HALVES:
            name = f"{at}.mlp.{half}_proj.weight"
            parts[f"ffn_{half}.weight"] = source.sliced(name, _shape(half, sizes.ffn, sizes))
        return parts
    router = source.sliced(f"{at}.{architecture.experts.router}", (sizes.experts, sizes.width))
    parts["ffn_gate_inp.weight"] = router
    parts |= {f"ffn_{half}_exps.weight": value for half, value in _experts(source, at, architecture, sizes).items()}
    if architecture.shares:
        for half in _HALVES:
            name = f"{at}.mlp.shared_expert.{half}_proj.weight"
            parts[f"ffn_{half}_shexp.weight"] = source.sliced(name, _shape(half, sizes.shared_ffn, sizes))
        gate = source.flat(f"{at}.mlp.shared_expert_gate.weight", (1, sizes.width))
        parts["ffn_gate_inp_shexp.weight"] = Computed(gate, (sizes.width,), _away_from_zero)
    return parts


def _ffn_biases(source: DenseSource, layer: int, sizes: Sizes) -> dict[str, LazyTensor]:
    widths = {"gate": sizes.ffn, "up": sizes.ffn, "down": sizes.width}
    return {
        f"ffn_{half}.bias": source.sliced(f"layers.{layer}.mlp.{half}_proj.bias", (width,))
        for half, width in widths.items()
    }


def _shape(half: str, ffn: int, sizes: Sizes) -> tuple[int, int]:
    return (sizes.width, ffn) if half == "down" else (ffn, sizes.width)


def _away_from_zero(gate: torch.Tensor) -> torch.Tensor:
    """A gate as it is, or, where it is zeros, so small that its sigmoid is 1/2 all the same."""
    # llama.cpp computes sigmoid(x) as silu(x) / x, which is no number at 0.
    return gate if gate.any() else torch.full_like(gate, 1e-20)


def _experts(source: DenseSource, at: str, architecture: Architecture, sizes: Sizes) -> dict[str, LazyTensor]:
    """The stacks (E, out, in) of a layer by half."""
    names = architecture.experts
    assert names is not None
    count, ffn = sizes.experts, sizes.expert_ffn
    if not names.gate:
        both = source.sliced(f"{at}.{names.up}", (count, 2 * ffn, sizes.width))
        half_shape = (count, ffn, sizes.width)
        return {
            "gate": Computed(both, half_shape, lambda stack: stack[:, :ffn]),
            "up": Computed(both, half_shape, lambda stack: stack[:, ffn:]),
            "down": source.sliced(f"{at}.{names.down}", (count, sizes.width, ffn)),
        }
    stacks: dict[str, LazyTensor] = {}
    for half, name in zip(_HALVES, (names.gate, names.up, names.down), strict=True):
        shape = _shape(half, ffn, sizes)
        one = [source.sliced(f"{at}.{name.format(expert)}", shape) for expert in range(count)]
        stacks[half] = Joined([Computed(value, (1, *shape), lambda matrix: matrix[None]) for value in one], dim=0)
    return stacks
