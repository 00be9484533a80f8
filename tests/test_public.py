"""The names that `import moe_hf` stands for, and what transformers knows through it."""

import pytest

import moe_hf
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS
from moe_hf.models.auto import FAMILIES, register_families


def test_every_public_name_is_there_once() -> None:
    assert len(set(moe_hf.__all__)) == len(moe_hf.__all__)
    for name in moe_hf.__all__:
        assert getattr(moe_hf, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "GPT2WithMoE",
        "GPT2WithMoEModel",
        "GPT2WithMoEForSequenceClassification",
        "GPT2WithMoEConfig",
        "create_moe_config",
        "get_moe_model_info",
        "MoE",
        "HashRouter",
        "SwitchRouter",
        "load_balance_std",
        "expert_utilization",
        "ConfigError",
        "CheckpointError",
        "BackendUnavailableError",
    ],
)
def test_promised_names_are_public(name: str) -> None:
    assert name in moe_hf.__all__


def test_importing_makes_the_experts_backends_known_to_transformers() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    assert set(EXPERTS_BACKENDS) <= set(ALL_EXPERTS_FUNCTIONS)


def test_registering_twice_changes_nothing() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    register_families()
    register_families()
    for model_type, family in FAMILIES.items():
        config = AutoConfig.for_model(
            model_type, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=50257
        )
        assert type(config) is family.config
        config.vocab_size = 17
        config.bos_token_id = config.eos_token_id = None
        assert type(AutoModelForCausalLM.from_config(config)) is family.causal_lm
