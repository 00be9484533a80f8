"""The table of candidates: what each costs a token, and that all can be made."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.worth.candidates import CANDIDATES, TWIN, candidate, make_model
from moe_hf.models.info import get_moe_model_info


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_token_meets_as_many_ffn_weights_as_in_the_dense_twin(name):
    model = make_model(name, vocab_size=300, context_length=64, seed=0)
    config = model.config
    assert bool(config.sparse_layers) != CANDIDATES[name].dense
    if not CANDIDATES[name].dense:
        units = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
        assert units == config.hidden_size * 4 == config.intermediate_size


def test_the_twin_is_the_tiny_preset_without_experts():
    model = make_model(TWIN, vocab_size=300, context_length=64, seed=0)
    preset = make_model("the tiny preset", vocab_size=300, context_length=64, seed=0)
    assert model.num_parameters() == get_moe_model_info(preset.config)["dense_twin_params"]


def test_an_unknown_candidate_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'dense twin'"):
        candidate("dense twins")
