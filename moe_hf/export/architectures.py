"""The table of transformers' own models that llama.cpp computes, and what it computes of them in one way only."""

from typing import NamedTuple

from transformers import PreTrainedConfig

from moe_hf.base.errors import CheckpointError
from moe_hf.base.optional import require
from moe_hf.base.registry import Registry
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, ExpertNames


class Architecture(NamedTuple):
    """How llama.cpp computes a family of transformers.

    Attributes:
        name: what llama.cpp calls it.
        rotates_pairs: whether it rotates the neighbours (0, 1), (2, 3) of a head, so that the rows of queries and
            keys are reordered; transformers rotates (0, D/2), (1, D/2 + 1).
        normed_heads: whether queries and keys are normed head by head.
        biases: of which of the projections q, k, v and o it adds a bias, where there is one.
        square: whether the heads together are as wide as the model.
        rope_factors: whether it reads a factor for each frequency of the rotation.
        experts: what a layer's experts are called in transformers' files; None for a dense model.
        shares: whether a gated expert sees every token.
        normalizes: whether the weights of a token's experts are divided by their sum.
        ties_head: whether it takes the embedding where there is no matrix of a head.
    """

    name: str
    rotates_pairs: bool = False
    normed_heads: bool = False
    biases: str = ""
    square: bool = False
    rope_factors: bool = False
    experts: ExpertNames | None = None
    shares: bool = False
    normalizes: bool = True
    ties_head: bool = True


_EXPERTS = {native.moe_type: native.names for native in NATIVE_FORMATS.values()}
_LLAMA = Architecture("llama", rotates_pairs=True, biases="qkvo", rope_factors=True)
_GRANITE = _LLAMA._replace(name="granite")

ARCHITECTURES: Registry[Architecture] = Registry(
    "model type",
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "mixtral": _LLAMA._replace(experts=_EXPERTS["mixtral"]),
        "qwen2": Architecture("qwen2", biases="qkv", square=True),
        "qwen2_moe": Architecture(
            "qwen2moe",
            biases="qkv",
            square=True,
            experts=_EXPERTS["qwen2_moe"],
            shares=True,
            normalizes=False,
            ties_head=False,
        ),
        "qwen3": Architecture("qwen3", normed_heads=True),
        "qwen3_moe": Architecture("qwen3moe", normed_heads=True, experts=_EXPERTS["qwen3_moe"]),
        "granite": _GRANITE,
        "granitemoe": _GRANITE._replace(name="granitemoe", experts=_EXPERTS["granitemoe"]),
    },
)
"""By the `model_type` of transformers."""


def architecture_of(name: str, model_type: str) -> Architecture:
    """The architecture of llama.cpp that computes a model.

    Args:
        name: what the user called the model.
        model_type: of its configuration.

    Raises:
        CheckpointError: there is none, or none that is written here.
    """
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    known = require("gguf", "writing GGUF files").MODEL_ARCH_NAMES.values()
    if model_type.replace("_", "") in {word.replace("-", "").replace("_", "") for word in known}:
        why = "llama.cpp knows it, but its layout is not written here; llama.cpp's convert_hf_to_gguf.py does it"
    else:
        why = "llama.cpp has no architecture that computes it"
    raise CheckpointError(
        f"{name} holds a model of type {model_type!r}, which can't be exported to GGUF: {why}; allowed are "
        f"{', '.join(ARCHITECTURES)}"
    )


def require_computable(config: PreTrainedConfig, architecture: Architecture) -> None:
    """Check that llama.cpp computes exactly what a configuration says.

    Raises:
        CheckpointError: a field has a value that the architecture has no place for.
    """
    refusals = {
        "hidden_act": "computes silu alone",
        "norm_topk_prob": f"{'always' if architecture.normalizes else 'never'} divides the weights of a token's "
        "experts by their sum, which changes nothing only where a token visits all experts",
        "mlp_only_layers": "has experts in every layer",
        "decoder_sparse_step": "has experts in every layer",
        "attention_bias": "has no place for biases",
        "head_dim": "has heads that are together as wide as the model",
    }
    for field in filter(lambda field: _differs(config, architecture, field), refusals):
        raise CheckpointError(
            f"{config.model_type} with {field}={getattr(config, field, None)!r} can't be exported to GGUF: llama.cpp's "
            f"{architecture.name} {refusals[field]}"
        )


def _differs(config: PreTrainedConfig, architecture: Architecture, field: str) -> bool:
    value = getattr(config, field, None)
    if value is None:
        return False
    if field == "hidden_act":
        return value != "silu"
    if field == "norm_topk_prob":
        # The weights of all experts sum to 1 as they are.
        return value != architecture.normalizes and config.num_experts_per_tok < config.num_experts
    if field == "attention_bias":
        return bool(value) and not architecture.biases
    if field == "head_dim":
        return architecture.square and value * config.num_attention_heads != config.hidden_size
    if architecture.experts is None:
        return False
    return bool(value) if field == "mlp_only_layers" else value != 1
