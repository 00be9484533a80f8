"""Finds and opens training data: files, folders, globs and hub data sets, checked before anything heavy happens."""

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import datasets
import pyarrow
import pyarrow.parquet

from moe_hf.base.errors import ConfigError
from moe_hf.training.runs.arguments import DataArguments

FILE_KINDS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
LINES_CHECKED_WHEN_STREAMING = 1000
_TEXT_UNITS = {"file": "document", "paragraph": "paragraph", "line": "line"}

RowKind: TypeAlias = Literal["text", "messages"]
RowDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset


class Rows(NamedTuple):
    """Opened data: a data set with the one column that `kind` names.

    `kind` is "text" (a string per row) or "messages" (a conversation per row: a list of {"role", "content"}).
    `name` says where the rows come from, for reports.
    """

    dataset: RowDataset
    kind: RowKind
    name: str


def open_rows(names: Sequence[str], arguments: DataArguments, cache_dir: str | None = None) -> Rows:
    """The rows of files, globs, folders or hub data sets, concatenated in the order given.

    Args:
        names: what stands after `--data` or `--eval_data`.
        arguments: columns, splits, whether to stream.
        cache_dir: where `datasets` keeps its Arrow files; its own default if absent.

    Raises:
        ConfigError: nothing matches, a file is empty or damaged (with its line), a column is missing, or plain text is
            mixed with conversations.
    """
    parts: list[Rows] = []
    for name in names:
        files = find_files(name)
        if files:
            parts += [
                _open_files([file for file in files if file.suffix == suffix], arguments, cache_dir)
                for suffix in FILE_KINDS
                if any(file.suffix == suffix for file in files)
            ]
        else:
            parts.append(_open_hub(name, arguments, cache_dir))
    kinds = {part.kind: part.name for part in reversed(parts)}
    if len(kinds) > 1:
        raise ConfigError(
            f"{kinds['text']} holds plain text but {kinds['messages']} holds conversations; train on one kind at a time"
        )
    whole = parts[0].dataset if len(parts) == 1 else datasets.concatenate_datasets([part.dataset for part in parts])
    return Rows(whole, parts[0].kind, ", ".join(names))


def find_files(name: str) -> list[Path]:
    """The data files that a path, folder or glob names, sorted; empty when `name` can only be a hub data set.

    Raises:
        ConfigError: `name` looks like a path but no data file is there, or a file is of an unknown kind or empty.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in FILE_KINDS and file.is_file())
        if not files:
            raise ConfigError(f"--data {name}: the folder holds no {', '.join(FILE_KINDS)} file")
    else:
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not files and _looks_like_path(name):
            raise ConfigError(
                f"--data {name}: no file matches (looked in {Path.cwd()}); give 'embedded', files "
                f"({' '.join(FILE_KINDS)}), a glob, a folder or the name of a data set on the hub"
            )
    for file in files:
        if file.suffix not in FILE_KINDS:
            allowed = ", ".join(FILE_KINDS)
            raise ConfigError(f"--data {file}: files of kind {file.suffix!r} can't be read; allowed: {allowed}")
        if file.stat().st_size == 0:
            raise ConfigError(f"--data {file}: the file is empty")
    return files


def check_conversation(messages: Any, where: str) -> None:
    """Nothing, if `messages` is a conversation to learn from.

    Raises:
        ConfigError: not a list of {"role": text, "content": text}, or without a turn of the assistant.
    """
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{where}: a conversation must be a list of messages, got {_short(messages)}")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ConfigError(f"{where}: a message must have a role and a content, got {_short(message)}")
        if not isinstance(message["content"], str):
            raise ConfigError(f"{where}: the content of a message must be text, got {_short(message['content'])}")
    if all(message["role"] != "assistant" for message in messages):
        raise ConfigError(f"{where}: the conversation has no turn of the assistant, so nothing can be learnt from it")


def check_jsonl(file: Path, arguments: DataArguments, num_lines: int | None = None) -> RowKind:
    """What the lines of a .jsonl file hold, each looked at.

    Args:
        file: the file.
        arguments: the columns' names.
        num_lines: stop after so many lines; None looks at all.

    Raises:
        ConfigError: a line is not a JSON object, lacks the columns, or holds a broken conversation; the text has the
            line's number.
    """
    kind: RowKind | None = None
    for number, line in _numbered_lines(file):
        if num_lines is not None and number > num_lines:
            break
        where = f"{file} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where} is not JSON ({error.msg}, column {error.colno}): {_short(line)}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is not a JSON object but {_short(row)}")
        found = _row_kind(row.keys(), arguments, where)
        if kind is not None and found != kind:
            raise ConfigError(f"{where} holds {found} but the lines before hold {kind}; train on one kind at a time")
        kind = found
        if kind == "messages":
            check_conversation(row[arguments.messages_column], where)
        elif not isinstance(row[arguments.text_column], str):
            found_text = _short(row[arguments.text_column])
            raise ConfigError(f"{where}: {arguments.text_column!r} must be text, got {found_text}")
    if kind is None:
        raise ConfigError(f"--data {file}: the file has only blank lines")
    return kind


def _open_files(files: list[Path], arguments: DataArguments, cache_dir: str | None) -> Rows:
    builder = FILE_KINDS[files[0].suffix]
    options: dict[str, Any] = {}
    kinds: set[RowKind] = {"text"}
    if builder == "text":
        options = {"sample_by": _TEXT_UNITS[arguments.text_unit]}
        for file in files:
            _check_utf8(file)
    elif builder == "json":
        limit = LINES_CHECKED_WHEN_STREAMING if arguments.streaming else None
        kinds = {check_jsonl(file, arguments, limit) for file in files}
    else:
        kinds = {_parquet_kind(file, arguments) for file in files}
    if len(kinds) > 1:
        raise ConfigError(f"some files of {files[0].parent} hold text and some messages; train on one kind at a time")
    kind = kinds.pop()
    column = "text" if builder == "text" else _column(kind, arguments)
    if builder != "text":
        options["columns"] = [column]
    loaded = datasets.load_dataset(
        builder,
        data_files=[str(file) for file in files],
        split="train",
        streaming=arguments.streaming,
        cache_dir=cache_dir,
        **(options if builder != "json" else {}),
    )
    return Rows(_only_column(loaded, column, kind), kind, str(files[0]))


def _open_hub(name: str, arguments: DataArguments, cache_dir: str | None) -> Rows:
    try:
        loaded = datasets.load_dataset(
            name, arguments.data_config, split=arguments.data_split, streaming=arguments.streaming, cache_dir=cache_dir
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--data {name}: there is no such file or folder here, and the hub could not give a data set of that name "
            f"({type(error).__name__}: {_short(str(error), 300)})"
        ) from error
    columns = loaded.column_names or next(iter(loaded)).keys()
    kind = _row_kind(columns, arguments, f"--data {name}")
    return Rows(_only_column(loaded, _column(kind, arguments), kind), kind, name)


def _only_column(loaded: RowDataset, column: str, kind: RowKind) -> RowDataset:
    loaded = loaded.select_columns([column])
    return loaded if column == kind else loaded.rename_column(column, kind)


def _parquet_kind(file: Path, arguments: DataArguments) -> RowKind:
    try:
        metadata = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"--data {file} is not a readable Parquet file: {error}") from error
    if metadata.metadata.num_rows == 0:
        raise ConfigError(f"--data {file}: the table has no rows")
    return _row_kind(metadata.schema_arrow.names, arguments, f"--data {file}")


def _row_kind(columns: Any, arguments: DataArguments, where: str) -> RowKind:
    if arguments.messages_column in columns:
        return "messages"
    if arguments.text_column in columns:
        return "text"
    raise ConfigError(
        f"{where} has no column {arguments.text_column!r} or {arguments.messages_column!r} but: "
        f"{', '.join(map(str, columns)) or 'none'}; name yours with --text_column or --messages_column"
    )


def _column(kind: RowKind, arguments: DataArguments) -> str:
    return arguments.messages_column if kind == "messages" else arguments.text_column


def _numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"{file} line {number} is not UTF-8 text: {error}") from error
            if text.strip():
                yield number, text.strip()


def _check_utf8(file: Path) -> None:
    blank = True
    for _, _text in _numbered_lines(file):
        blank = False
    if blank:
        raise ConfigError(f"--data {file}: the file has only blank lines")


def _looks_like_path(name: str) -> bool:
    return Path(name).suffix in FILE_KINDS or name.startswith((".", "/", "~")) or any(sign in name for sign in "*?[\\")


def _short(value: Any, length: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
