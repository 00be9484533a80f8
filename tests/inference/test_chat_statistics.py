"""The numbers of a chat: the model's, the last answer's and those of the whole session."""

from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.chat_statistics import statistics_rows

REPLIES = [
    Reply("Hello.", 4, 10, 0.5, "stop", 7, 0, None),
    Reply("Fine.", 6, 42, 2.0, "max_new_tokens", 8, 2, None),
]


def test_the_last_answer_and_all_of_them_are_counted(session) -> None:
    rows = dict(statistics_rows(session, REPLIES))
    assert rows["last answer"] == "6 tokens in 2.00 s, 3.0 tok/s"
    assert rows["all answers"] == "2 with 10 tokens in 2.50 s"
    assert rows["context"] == "48 of 96 tokens (50%)"
    assert rows["ended by"] == "max_new_tokens"
    assert rows["not seen"] == "the oldest 2 messages"
    assert "/set seed=8" in rows["seed"]


def test_before_the_first_answer_the_model_alone_is_described(session) -> None:
    rows = dict(statistics_rows(session, []))
    total, active = session.model.num_parameters(), session.model.num_active_parameters()
    assert rows["parameters"] == f"{total:,}, {active:,} active per token ({active / total:.0%})"
    assert rows["context"] == "0 of 96 tokens"
    assert "last answer" not in rows


def test_of_a_dense_model_all_parameters_are_active(babbler) -> None:
    rows = dict(statistics_rows(ChatSession(babbler), []))
    assert rows["parameters"] == f"{babbler.num_parameters():,}"
