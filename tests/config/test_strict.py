"""Validation errors of the strict dataclass machinery arrive as ConfigError, at construction and later."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.strict import strict_config


def test_a_value_of_the_wrong_type_is_refused_at_assignment_too() -> None:
    config = GPT2WithMoEConfig()
    with pytest.raises(ConfigError, match=r"num_experts.*int.*2\.5"):
        config.num_experts = 2.5  # type: ignore[assignment]
    assert config.num_experts == 8


def test_validation_runs_again_before_saving(tmp_path) -> None:
    config = GPT2WithMoEConfig()
    config.num_experts_per_tok = 99
    with pytest.raises(ConfigError, match="num_experts_per_tok=99"):
        config.save_pretrained(tmp_path)


def test_a_subclass_is_checked_against_its_own_fields() -> None:
    @strict_config
    class Narrow(GPT2WithMoEConfig):
        model_type = "narrow"
        extra: int = 3

    assert Narrow(extra=4).extra == 4
    with pytest.raises(ConfigError, match=r"Narrow.*extra"):
        Narrow(extra="four")


def test_transformers_own_checks_become_config_errors() -> None:
    with pytest.raises(ConfigError, match="output_attentions"):
        GPT2WithMoEConfig(output_attentions=True, attn_implementation="sdpa").validate()
