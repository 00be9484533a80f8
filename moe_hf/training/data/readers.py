"""Reads rows out of text, JSON Lines, CSV and Parquet files, each checked, with the place where it stands."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import pyarrow
import pyarrow.parquet

from moe_hf.base.errors import ConfigError

RowKind: TypeAlias = Literal["text", "messages"]

_LONGEST_CELL = 2**31 - 1
_ROWS_AT_ONCE = 1000


class Columns(NamedTuple):
    """How a row is found in a file: the names of the columns, and what one document of a .txt file is."""

    text: str
    messages: str
    text_unit: str

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
    """One document: a text, or a conversation as a list of messages; `place` says where it stands."""

    place: str
    kind: RowKind
    value: Any


def read_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file from first to last, each checked; none of an empty file.

    Raises:
        ConfigError: a row can't be learnt from, or is of another kind than the rows before; the text has the file, the
            line or row, what stands there and what to do.
    """
    kind: RowKind | None = None
    for row in READERS[file.suffix.lower()](file, columns):
        if kind is not None and row.kind != kind:
            raise ConfigError(f"{row.place} holds {row.kind} but the lines before hold {kind}; train on one at a time")
        kind = row.kind
        yield row._replace(value=checked_value(row.value, row.kind, columns, row.place))


def checked_value(value: Any, kind: RowKind, columns: Columns, where: str) -> Any:
    """The text or the conversation in a cell; a conversation may also be the JSON text of one.

    Raises:
        ConfigError: it is neither.
    """
    if kind == "text":
        _check_text(value, where, repr(columns.text), "fill it or drop the row")
        return value
    messages = _parsed(value, where) if isinstance(value, str) else value
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
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: {what} has half a character, {value[error.start]!r}, at position {error.start + 1} (a surrogate "
            "without its pair); write the whole character or take it out"
        ) from error


def _parsed(text: str, where: str) -> Any:
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


def _decoded_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and their ends, without the mark that some programs put before the first."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{file} line {number} is not UTF-8 text: byte 0x{line[error.start]:02x} at position "
                    f"{error.start + 1}; save the file as UTF-8"
                ) from error


def _text_rows(file: Path, columns: Columns) -> Iterator[Row]:
    pieces: list[str] = []
    for number, line in _decoded_lines(file):
        text = line.replace("\r\n", "\n").replace("\r", "\n")
        if columns.text_unit == "line" and text.strip():
            yield Row(f"{file} line {number}", "text", text.rstrip("\n"))
        elif columns.text_unit == "paragraph" and not text.strip("\n"):
            if pieces:
                yield Row(f"{file} before line {number}", "text", "".join(pieces).rstrip("\n"))
            pieces = []
        elif columns.text_unit != "line":
            pieces.append(text)
    whole = "".join(pieces)
    if whole.strip():
        yield Row(str(file), "text", whole.rstrip("\n") if columns.text_unit == "paragraph" else whole)


def _jsonl_rows(file: Path, columns: Columns) -> Iterator[Row]:
    for number, line in _decoded_lines(file):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        row = _parsed(line.strip(), where)
        if not isinstance(row, dict):
            raise ConfigError(
                f"{where} is not a JSON object but {short(row)}; write one object per line, such as "
                f'{{"{columns.text}": "..."}}'
            )
        kind = columns.kind_of(list(row), where)
        yield Row(where, kind, row[columns.messages if kind == "messages" else columns.text])


def _csv_rows(file: Path, columns: Columns) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line for _, line in _decoded_lines(file)), strict=True)
    header: list[str] | None = None
    kind: RowKind = "text"
    index, last_line = 0, 0
    while True:
        where = f"{file} line {last_line + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ConfigError(
                f'{where} is not CSV ({error}); quote texts with "..." and double quotes in them'
            ) from error
        last_line = reader.line_num
        if cells is None:
            return
        if not any(cell.strip() for cell in cells) and (header is None or len(cells) != len(header)):
            continue
        if header is None:
            header, kind = cells, columns.kind_of(cells, f"the first line of {file}")
            column = columns.messages if kind == "messages" else columns.text
            if header.count(column) > 1:
                raise ConfigError(f"{where}: the column {column!r} stands twice; rename one")
            index = header.index(column)
        elif len(cells) != len(header):
            raise ConfigError(
                f"{where} has {len(cells)} cells but the first line has {len(header)}: {short(cells)}; put texts with "
                "commas or line breaks into double quotes"
            )
        else:
            yield Row(where, kind, cells[index])


def _parquet_rows(file: Path, columns: Columns) -> Iterator[Row]:
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        kind = columns.kind_of(table.schema_arrow.names, str(file))
        column = columns.messages if kind == "messages" else columns.text
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
            for cell in batch.column(0):
                number += 1
                yield Row(f"{file} row {number}", kind, cell.as_py())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} is not a readable Parquet file from row {number + 1} on: {short(str(error), 200)}; write it again"
        ) from error


READERS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""How a file is read, by the end of its name."""
