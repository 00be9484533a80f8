"""The models that compete: dense ones of several shapes, and Mixtures of Experts, each a row of one table."""

from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.config.presets import create_moe_config

TWIN = "dense twin"
"""What every other candidate's cost is measured beside."""


class Candidate(NamedTuple):
    """A model of the study: whether it is dense, and how it differs from the `tiny` preset."""

    dense: bool
    fields: dict[str, Any]


def _dense(**fields: Any) -> Candidate:
    return Candidate(True, fields)


def _experts(number: int, width: int, top: int, shared: int, layers: str = "all", **fields: Any) -> Candidate:
    """A Mixture of Experts whose token meets `top * width + shared` units of FFN; the twin has 512."""
    places = {"all": "ssss", "every other": "sdsd", "upper half": "ddss"}[layers]
    kinds = ["sparse" if place == "s" else "dense" for place in places]
    # One expert alone weighs by its probability: divided by itself it would be 1 and teach the router nothing.
    shape = {"num_experts": number, "moe_intermediate_size": width, "num_experts_per_tok": top}
    return Candidate(
        False,
        {
            **shape,
            "shared_expert_intermediate_size": shared,
            "norm_topk_prob": top > 1,
            "mlp_layer_types": kinds,
            **fields,
        },
    )


CANDIDATES: dict[str, Candidate] = {
    TWIN: _dense(),
    "dense, width 96": _dense(hidden_size=96),
    "dense, width 160": _dense(hidden_size=160),
    "dense, width 192": _dense(hidden_size=192),
    "dense, width 256": _dense(hidden_size=256, num_attention_heads=4),
    "dense, 3 layers": _dense(num_hidden_layers=3),
    "dense, 6 layers": _dense(num_hidden_layers=6),
    "dense, FFN of 1024": _dense(intermediate_size=1024),
    "the tiny preset": _experts(8, 128, 1, 384, "every other"),
    "8 experts of 256, top-1": _experts(8, 256, 1, 256),
    "8 experts of 128, top-2": _experts(8, 128, 2, 256),
    "16 experts of 128, top-2": _experts(16, 128, 2, 256),
    "32 experts of 128, top-2": _experts(32, 128, 2, 256),
    "64 experts of 128, top-2": _experts(64, 128, 2, 256),
    "64 experts of 64, top-4": _experts(64, 64, 4, 256),
    "32 experts of 128, top-1": _experts(32, 128, 1, 384),
    "32 experts of 128, top-4, nothing shared": _experts(32, 128, 4, 0),
    "32 experts of 128, top-2, every other layer": _experts(32, 128, 2, 256, "every other"),
    "32 experts of 128, top-2, upper half": _experts(32, 128, 2, 256, "upper half"),
    "32 experts of 128, top-2, sigmoid with bias": _experts(32, 128, 2, 256, router_type="sigmoid_bias"),
    "32 experts of 128, top-2, no balance loss": _experts(32, 128, 2, 256, router_aux_loss_coef=0.0),
    "32 experts of 128, top-2, width 96": _experts(32, 96, 2, 192, hidden_size=96),
    "32 experts of 192, top-2, width 192": _experts(32, 192, 2, 384, hidden_size=192),
}
"""By name; a token meets as many weights in a Mixture of Experts of width 128 as in the dense twin."""


def candidate(name: str) -> Candidate:
    """The candidate of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CANDIDATES:
        raise ConfigError(
            f"candidate {name!r} is unknown{did_you_mean(name, list(CANDIDATES))}; allowed: {'; '.join(CANDIDATES)}"
        )
    return CANDIDATES[name]


def make_model(name: str, vocab_size: int, context_length: int, seed: int) -> PreTrainedModel:
    """A candidate with weights drawn from the seed.

    Raises:
        ConfigError: an unknown name.
    """
    chosen = candidate(name)
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "max_position_embeddings": context_length}
    config = create_moe_config("tiny", **sizes, **chosen.fields)
    if chosen.dense:
        config.make_dense()
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)
