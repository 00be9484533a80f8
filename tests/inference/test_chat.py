"""A chat shows each answer with what it cost, keeps its transcript up to date, and says what the model does not see."""

import json

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.chat import Chat, reply_summary
from moe_hf.inference.chat_session import Reply
from moe_hf.inference.transcript import TranscriptFile


def test_a_line_is_answered_and_the_speed_is_shown(talk):
    chat = talk("hi", "/reset", "fish?")
    assert chat.console.answers == ["hello you", "a carp é"]
    assert "10 tokens" in chat.console.notices[0]
    assert "tok/s" in chat.console.notices[0]


def test_the_transcript_follows_every_answer_undo_and_reset(talk, tmp_path):
    path = tmp_path / "auto.jsonl"
    talk("hi", "fish?", "/undo", "/reset", "fish?", transcript=TranscriptFile(path))
    assert [json.loads(line)["messages"][-1]["content"] for line in path.read_text().splitlines()] == [
        "hello you",
        "a carp é",
    ]


def test_a_full_context_is_told_once_and_counted_by_stats(talk, babbler):
    chat = talk(*["some words to say"] * 5, "/stats", "/reset", *["some words to say"] * 5, model=babbler)
    told = [notice for notice in chat.console.notices if "no longer sees" in notice]
    assert len({reply.num_unseen for reply in chat.replies} - {0}) >= 2
    assert len(told) == 2
    assert f"the oldest {chat.replies[4].num_unseen} messages" in chat.console.tables[0]


def test_a_cut_off_answer_is_shown_as_such(talk):
    assert "cut off at max_new_tokens" in talk("/set max_new_tokens=3", "hi").console.notices[-1]


@pytest.mark.parametrize(
    ("reason", "text", "said"),
    [
        ("stop", "Hi", "seed 7]"),
        ("stop", "", "an empty answer]"),
        ("interrupted", "Hi", "interrupted]"),
        ("context", "Hi", "the context is full]"),
    ],
)
def test_the_summary_says_why_an_answer_ended_unless_the_model_ended_it(reason, text, said):
    summary = reply_summary(Reply(text, 2, 9, 0.5, reason, 7, 0, None))
    assert summary.startswith("[2 tokens, 4.0 tok/s, seed 7")
    assert summary.endswith(said)


def test_a_full_gpu_is_an_error_that_says_what_to_do(session, list_console, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "ask", full)
    with pytest.raises(ConfigError, match="shorten the conversation"):
        Chat(session, list_console([]), lambda source: session.model).say("hi")
