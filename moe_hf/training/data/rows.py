"""What a row of training data is, and what makes one fit to learn from."""

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import datasets

from moe_hf.base.errors import ConfigError

RowKind: TypeAlias = Literal["text", "messages"]
RowDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


class Columns(NamedTuple):
    """How a row is found in a file: the names of the columns, and what one document of a .txt file is.

    `domain` is the column that says what a row is about, where anybody asks.
    """

    text: str
    messages: str
    text_unit: str
    domain: str | None = None

    def kind_of(self, names: Sequence[str], where: str) -> RowKind:
        """What a table with these columns holds.

        Raises:
            ConfigError: neither column is there.
        """
        if self.messages in names:
            return "messages"
        if self.text in names:
            return "text"
        raise ConfigError(
            f"{where} has no column {self.text!r} or {self.messages!r} but: "
            f"{short(', '.join(map(str, names)) or 'none', 200)}; name yours with --text_column or --messages_column"
        )


class Row(NamedTuple):
    """One document: a text, or a conversation as a list of messages.

    Attributes:
        place: where it stands.
        kind: "text" or "messages".
        value: the text, or the messages.
        domain: what its column of that name says it is about; None without one.
    """

    place: str
    kind: RowKind
    value: Any
    domain: str | None = None


class Rows(NamedTuple):
    """Opened data: a data set with the one column that `kind` names, and perhaps `place`.

    `kind` is "text" (a string per row) or "messages" (a conversation per row: a list of {"role", "content"}, or the
    JSON text of one). `place` tells where a conversation stands, for errors. `name` says where the rows come from, for
    reports. `notices` are sentences about what was left out.
    """

    dataset: RowDataset
    kind: RowKind
    name: str
    notices: tuple[str, ...] = ()


def conversation_in(cell: Any) -> Any:
    """The list of messages in a cell of a "messages" column."""
    return json.loads(cell) if isinstance(cell, str) else cell


def checked_value(value: Any, kind: RowKind, columns: Columns, where: str) -> Any:
    """The text or the conversation in a cell; a conversation may also be the JSON text of one.

    Raises:
        ConfigError: it is neither.
    """
    if kind == "text":
        _check_text(value, where, repr(columns.text), "fill it or drop the row")
        return value
    messages = parsed_json(value, where) if isinstance(value, str) else value
    check_conversation(messages, where)
    return messages


def check_conversation(messages: Any, where: str) -> None:
    """Nothing, if `messages` is a conversation to learn from.

    Raises:
        ConfigError: not a list of {"role": text, "content": text}, or without a turn of the assistant.
    """
    if not isinstance(messages, list) or not messages:
        raise ConfigError(
            f"{where}: a conversation must be a list of messages, got {short(messages)}; write "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        )
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ConfigError(f"{where}: message {number} must have a role and a content, got {short(message)}")
        _check_text(message["role"], where, f"the role of message {number}", "write system, user or assistant")
        _check_text(message["content"], where, f"the content of message {number}", "fill it or drop the conversation")
    if all(message["role"] != "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise ConfigError(
            f"{where}: the conversation has no turn of the assistant, so nothing can be learnt from it; its roles are "
            f"{short(roles)}: call who answers assistant, or drop it"
        )


def short(value: Any, length: int = 80) -> str:
    """A value as it stands in an error: cut where it is long, each character one that can be printed."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _check_text(value: Any, where: str, what: str, cure: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {what} must be text, got {short(value)}; {cure}")
    # A Python string may hold half of a surrogate pair, which JSON can spell; no UTF-8 and so no tokenizer takes it.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: {what} has half a character, {value[error.start]!r}, at position {error.start + 1} (a surrogate "
            "without its pair); write the whole character or take it out"
        ) from error


def parsed_json(text: str, where: str) -> Any:
    """The value of a JSON text in which no key stands twice.

    Raises:
        ConfigError: it is not JSON, or none that can be used.
    """
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{where} is not JSON ({error.msg}, column {error.colno}): {short(text)}; mend or drop the line"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deep to be read: {short(text)}; drop the line") from error
    except ValueError as error:
        # A key that stands twice, or a number of thousands of digits.
        raise ConfigError(f"{where} is not JSON that can be used: {error}; mend or drop the line") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {short(twice)!r} stands twice in one object")
    return found
