"""The Auto classes know the families, with and without weights."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from moe_hf import GPT2WithMoE, GPT2WithMoEConfig, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.config.architectures import ARCHITECTURES
from moe_hf.config.pattern import MIXER_NAMES
from moe_hf.layers.mixers import MIXERS
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


def test_every_word_for_a_family_is_that_of_a_registered_one() -> None:
    assert {config.model_type for config in ARCHITECTURES.values()} == set(FAMILIES)
    assert {*MIXERS, "none"} == set(MIXER_NAMES)


def test_a_mixer_and_its_family_stand_in_the_files_that_a_contributor_is_told() -> None:
    root = Path(__file__).parent.parent.parent
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Adding a mixer")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(moe_hf/[\w/]+\.py)`", section))
    named = re.compile(r"\"retention\"|retention import|RetNetWithMoE|DenseRetNet|\"RetNet\"")
    # What is measured names what it measures.
    sources = [path for path in (root / "moe_hf").rglob("*.py") if "bench" not in path.parts]
    found = {str(p.relative_to(root)) for p in sources if p.stem == "retention" or named.search(p.read_text())}
    assert found == listed
