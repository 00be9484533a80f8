"""Reads rows out of text, JSON Lines, CSV and Parquet files, with the place where each stands."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.rows import Columns, Row, RowKind, parsed_json, short

_LONGEST_CELL = 2**31 - 1
_ROWS_AT_ONCE = 1000


def _decoded_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and their ends, without the mark that some programs put before the first."""
    # As bytes: text mode decodes ahead of the line that it hands out, and could not name the one that is at fault.
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{file} line {number} is not UTF-8 text: byte 0x{line[error.start]:02x} at position "
                    f"{error.start + 1}; save the file as UTF-8"
                ) from error


def _domain(cell: object, where: str) -> str | None:
    if cell is None or cell == "":
        return None
    if not isinstance(cell, str | int):
        raise ConfigError(f"{where}: its domain is {short(cell)}; it must be text")
    return str(cell)


def text_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The documents of a text file: all of it, its paragraphs or its lines."""
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


def jsonl_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file of JSON Lines: an object per line."""
    for number, line in _decoded_lines(file):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        row = parsed_json(line.strip(), where)
        if not isinstance(row, dict):
            raise ConfigError(
                f"{where} is not a JSON object but {short(row)}; write one object per line, such as "
                f'{{"{columns.text}": "..."}}'
            )
        kind = columns.kind_of(list(row), where)
        yield Row(
            where,
            kind,
            row[columns.messages if kind == "messages" else columns.text],
            _domain(row.get(columns.domain), where),
        )


def csv_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a CSV file, whose first line names the columns."""
    # Python refuses cells of more than 131,072 characters, which a long document has.
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line for _, line in _decoded_lines(file)), strict=True)
    header: list[str] | None = None
    kind: RowKind = "text"
    index, last_line = 0, 0
    while True:
        # A quoted cell may hold line breaks: a row begins behind the line on which the last one ended.
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
            about = cells[header.index(columns.domain)] if columns.domain in header else None
            yield Row(where, kind, cells[index], _domain(about, where))


def parquet_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file."""
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        kind = columns.kind_of(table.schema_arrow.names, str(file))
        column = columns.messages if kind == "messages" else columns.text
        # These columns alone and so many rows at once: the file may be larger than memory.
        about = [name for name in table.schema_arrow.names if name == columns.domain]
        texts = (pyarrow.string(), pyarrow.large_string())
        if len(about) > 1 or any(table.schema_arrow.field(name).type not in texts for name in about):
            raise ConfigError(f"{file}: {columns.domain!r} must be one column of text; rename the others, or cast it")
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column, *about]):
            domains = batch.column(about[0]).to_pylist() if about else [None] * len(batch)
            for cell, domain in zip(batch.column(column), domains, strict=True):
                number += 1
                where = f"{file} row {number}"
                yield Row(where, kind, cell.as_py(), _domain(domain, where))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} is not a readable Parquet file from row {number + 1} on: {short(str(error), 200)}; write it again"
        ) from error
