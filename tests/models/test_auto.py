"""The Auto classes know the families, with and without weights."""

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from moe_hf import GPT2WithMoE, GPT2WithMoEConfig, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.models.auto import FAMILIES

CLASSES = [
    (AutoModel, GPT2WithMoEModel),
    (AutoModelForCausalLM, GPT2WithMoE),
    (AutoModelForSequenceClassification, GPT2WithMoEForSequenceClassification),
]


@pytest.mark.parametrize(("auto", "expected"), CLASSES)
def test_builds_the_family_s_class(auto, expected, tiny_config) -> None:
    assert type(auto.from_config(tiny_config())) is expected


@pytest.mark.parametrize(("auto", "expected"), CLASSES)
def test_loads_the_family_s_class(auto, expected, tiny_model, token_ids, tmp_path) -> None:
    model = tiny_model(expected)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is expected
    assert loaded(token_ids)[0].equal(model(token_ids)[0])


def test_finds_the_configuration_by_its_model_type(tmp_path, tiny_config) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is GPT2WithMoEConfig


@pytest.mark.parametrize("backend", ["eager", "batched_mm", "grouped_mm"])
def test_the_experts_backend_may_be_chosen_here(tiny_config, tiny_model, tmp_path, backend: str) -> None:
    built = AutoModelForCausalLM.from_config(tiny_config(), experts_implementation=backend, attn_implementation="eager")
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation=backend, attn_implementation="eager")
    for model in (built, loaded):
        assert model.config._experts_implementation == backend
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_is_whole(model_type: str) -> None:
    family = FAMILIES[model_type]
    assert family.config.model_type == model_type
    for member in (family.model, family.causal_lm, family.sequence_classification):
        assert member.config_class is family.config
    assert family.causal_lm.model_class is family.sequence_classification.model_class is family.model
