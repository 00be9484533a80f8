"""A dense configuration becomes that of the Mixture of Experts, field by field, without its weights."""

import pytest

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.native_config import choose_native
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS
from tests.models.upcycling.conftest import CONFIGS, SHAPE


@pytest.mark.parametrize("kind", list(NATIVE_FORMATS))
def test_the_shape_is_taken_over(kind: str) -> None:
    choice = choose_native(CONFIGS[kind](), num_experts=6, num_experts_per_tok=3)
    assert choice.config.model_type == choice.format.moe_type
    for name, value in SHAPE.items():
        assert getattr(choice.config, name) == value, name
    experts = getattr(choice.config, "num_local_experts", None) or choice.config.num_experts
    assert (experts, choice.config.num_experts_per_tok) == (6, 3)
    assert getattr(choice.config, "norm_topk_prob", True) is True
    assert choice.wanted.sparse_layers == [0, 1, 2]


def test_what_a_class_would_choose_by_itself_is_said() -> None:
    # Mixtral's own default, and Llama has no windows.
    assert choose_native(CONFIGS["llama"]()).config.sliding_window is None
    assert choose_native(CONFIGS["mistral"]()).config.sliding_window == 5
    qwen = choose_native(CONFIGS["qwen2"]()).config
    assert (qwen.shared_expert_intermediate_size, qwen.mlp_only_layers, qwen.decoder_sparse_step) == (60, [], 1)


def test_a_choice_without_a_meaning_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mixer='mamba' has no meaning for .* mixtral; allowed are num_experts"):
        choose_native(CONFIGS["llama"](), mixer="mamba")


def test_a_field_that_the_class_does_not_have_is_refused_unless_it_does_nothing() -> None:
    assert choose_native(CONFIGS["llama"](pretraining_tp=4)).config.model_type == "mixtral"
    with pytest.raises(CheckpointError, match="mlp_bias=True, for which transformers' mixtral has no place"):
        choose_native(CONFIGS["llama"](mlp_bias=True))
