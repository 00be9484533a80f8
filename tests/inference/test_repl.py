"""The loop of a chat: what a line means, and that it outlives whatever goes wrong."""

import pytest

from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import byte_tokenizer


def test_an_unknown_command_names_the_nearest_and_the_chat_goes_on(talk):
    console = talk("/rest", "hi").console
    assert "unknown command /rest; did you mean 'reset'" in console.errors[0]
    assert console.answers == ["hello you"]


def test_two_slashes_begin_a_message_with_a_slash(talk):
    assert talk("//usr").session.last_question == "/usr"


def test_a_block_is_one_message_even_with_a_slash_in_front(talk):
    assert talk('"""/hi\nthere"""').session.last_question == "/hi\nthere"


def test_an_empty_line_says_nothing(talk):
    assert talk("", "   ", '""""""').session.messages == []


def test_exit_leaves_at_once(talk):
    assert talk("/exit", "hi").console.answers == []


def test_ctrl_c_twice_at_the_prompt_leaves_and_once_does_not(talk):
    console = talk(KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "fish?").console
    assert console.answers == ["hello you"]
    assert [notice for notice in console.notices if "once more" in notice] == console.notices[::2]


@pytest.mark.parametrize(
    "fault", ["{{ 1 + 'a' }}", "{{ raise_exception('no') }}", "{{ messages[0]['x']['y'] }}", "{% if %}"]
)
def test_the_chat_outlives_a_template_that_fails(talk, babbler, fault):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = fault
    chat = talk("hi", "/system s", "/stats", model=CausalTextModel(babbler.model, tokenizer, "odd"))
    assert [("refuses this conversation" in error) for error in chat.console.errors] == [True, True]
    assert len(chat.console.tables) == 1


def test_the_chat_outlives_an_error_of_any_kind(talk, talker, monkeypatch):
    def broken(messages):
        raise KeyError("a foreign tokenizer")

    monkeypatch.setattr(talker, "encode", broken)
    console = talk("hi", "/stats").console
    assert "a foreign tokenizer" in console.errors[0]
    assert len(console.tables) == 1


def test_a_message_that_is_too_long_is_an_error_and_the_chat_goes_on(talk):
    console = talk("x" * 200, "hi").console
    assert "context holds 96" in console.errors[0]
    assert console.answers == ["hello you"]


def test_bytes_that_are_no_text_are_replaced(talk):
    assert talk("hi \udcff").session.last_question == "hi ?"
