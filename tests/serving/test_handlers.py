"""How a request's settings become those of `generate`."""

import pytest
from transformers import GenerationConfig

from moe_hf.serving.calls import begin_call
from moe_hf.serving.generation import TakingTurns
from moe_hf.serving.handlers import LONGEST_ANSWER, ChatHandler, Managers
from moe_hf.serving.metrics import Meter
from moe_hf.serving.served import ServedModels


@pytest.fixture
def config_of(models):
    def config_of(own: GenerationConfig | None = None, **fields) -> GenerationConfig:
        begin_call()
        handler = ChatHandler(ServedModels(models), Managers(TakingTurns(Meter())))
        body = handler._enter({"model": "talker", **fields})
        return handler._build_generation_config(body, own or GenerationConfig())

    return config_of


def test_the_models_own_settings_stand_where_the_request_has_none(config_of, models) -> None:
    own = GenerationConfig(do_sample=True, temperature=0.3, top_k=7, max_new_tokens=12, num_beams=4)
    config = config_of(own)
    assert (config.do_sample, config.temperature, config.top_k, config.max_new_tokens) == (True, 0.3, 7, 12)
    assert config.num_beams == 1
    assert config.eos_token_id == sorted(models[0].stop_ids)
    assert config_of().max_new_tokens == LONGEST_ANSWER


@pytest.mark.parametrize("own", [GenerationConfig(do_sample=False), GenerationConfig(do_sample=True, temperature=0.5)])
def test_a_temperature_has_an_effect_and_zero_is_greedy(config_of, own) -> None:
    warm = config_of(own, temperature=0.9, top_p=0.5, top_k=3, repetition_penalty=1.2)
    assert (warm.do_sample, warm.temperature, warm.top_p, warm.top_k) == (True, 0.9, 0.5, 3)
    assert warm.repetition_penalty == 1.2
    assert config_of(own, temperature=0).do_sample is False


def test_both_words_for_the_longest_answer_count(config_of) -> None:
    assert config_of(max_tokens=3).max_new_tokens == 3
    assert config_of(max_completion_tokens=4).max_new_tokens == 4


def test_a_seed_is_kept_for_the_thread_that_draws(models) -> None:
    call = begin_call()
    handler = ChatHandler(ServedModels(models), Managers(TakingTurns(Meter())))
    assert handler._enter({"model": "talker", "seed": 9}) == {"model": "talker"}
    assert (call.seed, call.model) == (9, models[0])
