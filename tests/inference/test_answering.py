"""A conversation needs no transformers model: whatever speaks the protocol can answer."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.inference.answering import Completion
from moe_hf.inference.chat_session import ChatSession, Exchange
from moe_hf.inference.settings import GenerationSettings


class Counter:
    """Answers with the number of characters that it was given; a token is a character."""

    name, is_chat, context_limit, sparse_layers = "counter", True, 20, ()

    def encode(self, messages):
        return [ord(character) for message in messages for character in message["content"]]

    def complete(self, prompt_ids, settings, seed, on_text, stop=None, record_routing=False, on_routing=None):
        text = str(len(prompt_ids))[: settings.max_new_tokens]
        on_text(text)
        return Completion(text, len(text), 0.5, True, None)


def test_a_session_asks_whatever_answers() -> None:
    session, shown = ChatSession(Counter(), GenerationSettings(max_new_tokens=4)), []
    reply = session.ask("hello", shown.append)
    assert (reply.text, reply.num_prompt_tokens, reply.finish_reason, reply.tokens_per_second) == ("5", 5, "stop", 2.0)
    assert session.ask("you", shown.append).text == "9"
    assert session.exchanges == [Exchange("hello", "5"), Exchange("you", "9")]
    assert shown == ["5", "9"]


def test_its_context_is_kept() -> None:
    session = ChatSession(Counter(), GenerationSettings(max_new_tokens=4))
    with pytest.raises(ConfigError, match="has 20 tokens with its frame, the model's context holds 20"):
        session.ask("x" * 20, print)
    session.exchanges = [Exchange("a" * 9, "b" * 9)]
    assert session.ask("new", print).num_unseen == 2
