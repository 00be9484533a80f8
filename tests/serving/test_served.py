"""Which models a server has, and how a conversation becomes their prompt."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.serving.requests import RequestError
from moe_hf.serving.served import Prompter, ServedModels

HI = [{"role": "user", "content": "hi"}]


def test_models_are_found_by_name_and_the_only_one_without(models) -> None:
    both = ServedModels(models)
    assert both.load_model_and_processor("babbler")[0] is models[1].model
    assert [entry["id"] for entry in both.list_models()] == ["talker", "babbler"]
    assert ServedModels(models[:1]).find(None) is models[0]
    for name in (None, "openai/gpt2", "talker@main"):
        with pytest.raises(RequestError, match="served are talker, babbler") as caught:
            both.find(name)
        assert caught.value.status == 404


def test_no_model_and_two_of_one_name_are_refused(models) -> None:
    with pytest.raises(ConfigError, match="got none"):
        ServedModels([])
    with pytest.raises(ConfigError, match="different names, got talker, talker"):
        ServedModels([models[0], models[0]])


def test_a_conversation_is_encoded_as_the_chat_encodes_it(models, talker) -> None:
    prompter = Prompter(models[0])
    assert prompter.apply_chat_template(HI)["input_ids"] == talker.encode(HI)
    assert prompter.apply_chat_template(HI, return_tensors="pt")["input_ids"].tolist() == [talker.encode(HI)]


def test_a_conversation_that_the_template_refuses_is_a_bad_request(models) -> None:
    with pytest.raises(RequestError, match="refuses this conversation") as caught:
        Prompter(models[0]).apply_chat_template([{"role": "oracle", "content": "hi"}])
    assert caught.value.status == 400
