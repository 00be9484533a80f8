"""What a row may be, and what makes it fit to learn from."""

import json

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.rows import Columns, checked_value, conversation_in, short
from moe_hf.training.data.sources import open_rows
from tests.training.data.samples import CHATS, jsonl


def test_rows_may_differ_in_all_that_is_not_read(tmp_path):
    chat = [{"role": "user", "content": "a", "name": "Tom"}, {"role": "assistant", "content": "b", "weight": 1}]
    rows = [{"messages": chat, "id": 1}, {"messages": CHATS[0], "id": "two", "tags": [None]}]
    read = open_rows([jsonl(tmp_path / "a.jsonl", rows)], DataArguments()).dataset
    assert [conversation_in(row["messages"]) for row in read] == [chat, CHATS[0]]


def test_conversations_are_read_turn_by_turn(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"messages": chat} for chat in CHATS])
    rows = open_rows([str(tmp_path / "train.jsonl")], DataArguments())
    assert rows.kind == "messages"
    assert [message["role"] for message in conversation_in(rows.dataset[1]["messages"])][:2] == ["system", "user"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("[", "row 3 is not JSON"),
        ([], "must be a list of messages"),
        ([{"role": "user"}], "message 1 must have a role and a content"),
        ([{"role": "user", "content": 5}], "the content of message 1 must be text, got 5"),
        ([{"role": "human", "content": "hi"}], "its roles are human"),
    ],
)
def test_what_is_no_conversation_is_refused_with_what_stands_there(cell, words) -> None:
    with pytest.raises(ConfigError) as error:
        checked_value(cell, "messages", COLUMNS, "row 3")
    assert words in str(error.value)


def test_a_text_is_itself_and_a_conversation_may_be_its_json() -> None:
    assert checked_value("a", "text", COLUMNS, "row 1") == "a"
    assert checked_value(json.dumps(CHATS[0]), "messages", COLUMNS, "row 1") == CHATS[0]
    with pytest.raises(ConfigError, match="'text' must be text, got 5"):
        checked_value(5, "text", COLUMNS, "row 1")
    with pytest.raises(ConfigError, match="half a character"):
        checked_value("\ud83d", "text", COLUMNS, "row 1")


def test_conversations_are_preferred_to_texts_and_columns_that_are_absent_are_named() -> None:
    assert COLUMNS.kind_of(["text", "messages"], "a") == "messages"
    assert COLUMNS.kind_of(["n", "text"], "a") == "text"
    with pytest.raises(ConfigError, match="a has no column 'text' or 'messages' but: body"):
        COLUMNS.kind_of(["body"], "a")


@pytest.mark.parametrize(
    ("value", "shown"), [("a" * 9, "aaaaa..."), ("ab", "ab"), ("\x1b", repr("\x1b")), ([1], "[1]")]
)
def test_a_value_in_an_error_is_short_and_printable(value, shown) -> None:
    assert short(value, 8) == shown


COLUMNS = Columns("text", "messages", "file")
