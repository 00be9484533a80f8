"""Words for architectures: the family they mean, and which saved configurations answer to them."""

import pytest

from moe_hf import ConfigError, GPT2WithMoEConfig, create_moe_config
from moe_hf.config import architectures
from moe_hf.config.architectures import ARCHITECTURES, architecture_config, is_of_architecture

PATTERNS = ["mamba*3,attention", "retention,attention", "rwkv*2,attention*2", "attention,retention,attention,mamba"]


@pytest.mark.parametrize("word", [*ARCHITECTURES, *PATTERNS])
def test_a_tiny_model_of_every_architecture_answers_to_its_own_word_alone(word: str) -> None:
    config = create_moe_config("tiny", architecture=word)
    assert [other for other in [*ARCHITECTURES, *PATTERNS] if is_of_architecture(config, other)] == [word]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_in_a_hybrid_gets_rotary_positions(pattern: str) -> None:
    assert create_moe_config("tiny", architecture=pattern).position_embedding_type == "rotary"


def test_a_hybrid_belongs_to_the_family_of_its_first_other_mixer() -> None:
    assert architecture_config("attention,retention")[0].model_type == "retnet_moe"
    assert architecture_config("attention")[0] is GPT2WithMoEConfig


def test_a_mixer_without_a_family_takes_the_defaults_of_gpt2_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "MIXER_NAMES", ("attention", "conv"))
    assert architecture_config("conv*3,attention")[0] is GPT2WithMoEConfig


def test_a_pattern_that_does_not_fit_and_other_placements_of_ffns_are_told_apart() -> None:
    six = create_moe_config("tiny", architecture="mamba", num_hidden_layers=6)
    assert not is_of_architecture(six, "mamba*3,attention")
    apart = create_moe_config("tiny", architecture="mamba,attention", mlp_placement="interleaved")
    assert is_of_architecture(apart, "mamba,attention")


def test_within_a_pattern_mixers_are_suggested_not_families() -> None:
    with pytest.raises(ConfigError, match="did you mean 'retention'"):
        architecture_config("retent,attention")


@pytest.mark.parametrize("word", ["mambo", "mamba,attentoin", "transformer", "none"])
def test_an_unknown_word_is_refused_with_what_there_is(word: str) -> None:
    with pytest.raises(ConfigError, match=r"it must be gpt2, llama, retnet.*pattern of mixers"):
        architecture_config(word)


@pytest.mark.parametrize("word", ARCHITECTURES)
def test_every_architecture_has_a_dense_twin(word: str) -> None:
    config = create_moe_config("tiny", architecture=word)
    assert config.sparse_layers
    config.make_dense()
    assert not config.sparse_layers
    assert not config.router_of_sparse_layer
