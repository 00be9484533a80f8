"""The models that transformers' shared tests are run on, each with a tiny configuration and inputs."""

from typing import Any, NamedTuple

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.auto import FAMILIES

BATCH, LENGTH, WIDTH, HEADS, LAYERS = 4, 7, 32, 4, 2
SHAPE: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mlp_layer_types": ["sparse", "dense"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "resid_dropout": 0.0,
    "embd_dropout": 0.0,
    "attention_dropout": 0.0,
}
BIASED_ROUTER = {"router_type": "sigmoid_bias", "shared_expert_intermediate_size": 24, "shared_expert_gate": True}


class Case(NamedTuple):
    """What the shared tests are run on.

    Attributes:
        family: key of `FAMILIES`.
        fields: of the configuration, beyond `SHAPE`.
        has_attentions: whether every layer gives attention weights.
        hidden_size: width of the hidden states.
        learning_rate: with which the test of overfitting gets there in its 300 steps.
    """

    family: str
    fields: dict[str, Any]
    has_attentions: bool = True
    hidden_size: int = WIDTH
    learning_rate: float = 1e-3


LOCAL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "mlp_layer_types": ["sparse", "dense"],
}
SMALL_FILTER = {"hyena_filter_embedding": 5, "hyena_filter_width": 8}
CASES: dict[str, Case] = {
    "GPT2": Case("gpt2_moe", {}),
    "GPT2Rotary": Case("gpt2_moe", {"position_embedding_type": "rotary", "mixer_short_conv": 3, **BIASED_ROUTER}),
    "Llama": Case("llama_moe", {"num_key_value_heads": 2}),
    "RetNet": Case("retnet_moe", {}, has_attentions=False),
    "Mamba1": Case("mamba_moe", {"mamba_version": 1, "mamba_state_size": 5}, has_attentions=False),
    "Mamba2": Case("mamba_moe", {"mamba_state_size": 6, "mamba_head_dim": 16}, has_attentions=False),
    "MambaAttention": Case(
        "mamba_moe", {"mixer": "mamba,attention", "mamba_state_size": 6, "mamba_head_dim": 16}, has_attentions=False
    ),
    "Hyena": Case("hyena_moe", SMALL_FILTER, has_attentions=False),
    "RWKV7": Case("rwkv_moe", {}, has_attentions=False),
    "RWKV4": Case("rwkv_moe", {"rwkv_version": 4}, has_attentions=False),
    "MegaByte": Case(
        "megabyte_moe", {"patch_size": 4, "local_config": LOCAL}, hidden_size=LOCAL["hidden_size"], learning_rate=3e-3
    ),
}


class CaseTester:
    """What transformers' shared tests ask a model tester for."""

    batch_size = BATCH
    seq_length = LENGTH
    num_attention_heads = HEADS
    num_hidden_layers = LAYERS
    is_training = True

    def __init__(self, case: Case) -> None:
        self.hidden_size = case.hidden_size
        self.fields = {**SHAPE, **case.fields}
        self.config_class = FAMILIES[case.family].config
        self.causal_lm_class = FAMILIES[case.family].causal_lm

    def get_config(self) -> MoEDecoderConfig:
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[MoEDecoderConfig, dict[str, torch.Tensor]]:
        ids_BS = torch.randint(3, SHAPE["vocab_size"], (BATCH, LENGTH))
        mask_BS = torch.ones_like(ids_BS)
        # One row is padded on the left, one on the right.
        mask_BS[1, :2] = 0
        mask_BS[2, -3:] = 0
        return self.get_config(), {"input_ids": ids_BS, "attention_mask": mask_BS}
