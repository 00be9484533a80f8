"""The models that are compared: one small one for each mixer, alike in everything else."""

from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.bench.studies.recall.tasks import LENGTH, Task

_WIDTH = 64
# Dense, since what is compared is what moves information between tokens.
_SHAPE: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * _WIDTH,
    "max_position_embeddings": LENGTH,
    "mlp_layer_types": ["dense", "dense"],
    "mlp_gated": False,
    "resid_dropout": 0.0,
    "embd_dropout": 0.0,
    "attention_dropout": 0.0,
    # GPT-2's 0.02 suits a width of 768; with it no model of this width finds out how to look up a pair.
    "initializer_range": _WIDTH**-0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


class Arm(NamedTuple):
    """A mixer to compare.

    Attributes:
        family: a model type, whose defaults hold for what is not said.
        fields: of the configuration, beyond the shape that all share.
        gates: for tasks by name, the least accuracy, mean over the seeds, that shows that the mixer works.
        attn_implementation: of attention layers; None leaves the choice to transformers.
    """

    family: str
    fields: dict[str, Any]
    gates: dict[str, float]
    attn_implementation: str | None = None


_EASY = {"copying": 0.97, "induction": 0.97}
ARMS: dict[str, Arm] = {
    "attention": Arm("gpt2_moe", {}, gates={"mqar": 0.97, **_EASY}),
    "topk_sparse": Arm("gpt2_moe", {"attn_topk": 8}, gates={"mqar": 0.97, **_EASY}, attn_implementation="topk_sparse"),
    # About the paper's own draw of the projections; from 1/8, retention does not find out how to look up a pair.
    "retention": Arm("retnet_moe", {"initializer_range": 0.03}, gates={"mqar": 0.6, **_EASY}),
    "mamba 1": Arm("mamba_moe", {"mamba_version": 1}, gates={"mqar": 0.8, **_EASY}),
    "mamba 2": Arm("mamba_moe", {"mamba_state_size": 32, "mamba_head_dim": 32}, gates={"mqar": 0.97, **_EASY}),
    "rwkv 4": Arm("rwkv_moe", {"rwkv_version": 4}, gates={"mqar": 0.9, **_EASY}),
    "rwkv 7": Arm("rwkv_moe", {}, gates={"mqar": 0.97, **_EASY}),
    "hyena": Arm("hyena_moe", {}, gates={"mqar": 0.2, **_EASY}),
    "hyena, attention": Arm("hyena_moe", {"mixer": ["hyena", "attention"]}, gates={"mqar": 0.97, **_EASY}),
}
"""Every arm by the name that the tables give it."""


def make_model(arm: str, task: Task, seed: int) -> PreTrainedModel:
    """A fresh model of that arm for that task.

    Raises:
        ConfigError: there is no such arm.
    """
    if arm not in ARMS:
        raise ConfigError(f"unknown mixer {arm!r}; allowed: {', '.join(ARMS)}{did_you_mean(arm, list(ARMS))}")
    family, fields, _, attn_implementation = ARMS[arm]
    chosen = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    # Right before the weights are drawn: they follow from the seed alone.
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SHAPE, "vocab_size": task.vocab_size, **fields, **chosen})
    return AutoModelForCausalLM.from_config(config)
