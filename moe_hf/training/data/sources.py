"""Finds and opens training data: files, folders, globs and hub data sets, checked before anything heavy happens."""

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from moe_hf.base.errors import ConfigError
from moe_hf.base.model_source import ask_hub
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.embedded import embedded_held_out, embedded_rows
from moe_hf.training.data.readers import csv_rows, jsonl_rows, parquet_rows, text_rows
from moe_hf.training.data.rows import Columns, Row, RowDataset, RowKind, Rows, checked_value, short

ROWS_CHECKED_WHEN_STREAMING = 1000


class GeneratedSource(NamedTuple):
    """Rows that the package makes itself, in the order in which they are best learnt.

    Attributes:
        train: rows to train on, by the arguments and a seed.
        held_out: rows of which none is among them.
    """

    train: Callable[[DataArguments, int], Rows]
    held_out: Callable[[], Rows]


class FileSource(NamedTuple):
    """A kind of file.

    Attributes:
        read: its rows from first to last; none of an empty file.
        without_rows: what a file has that is not empty and yet holds no row.
    """

    read: Callable[[Path, Columns], Iterator[Row]]
    without_rows: str = "only blank lines"


EMBEDDED = "embedded"
SOURCES: dict[str, GeneratedSource | FileSource] = {
    EMBEDDED: GeneratedSource(embedded_rows, embedded_held_out),
    ".txt": FileSource(text_rows),
    ".jsonl": FileSource(jsonl_rows),
    ".csv": FileSource(csv_rows, "no rows"),
    ".parquet": FileSource(parquet_rows, "no rows"),
}
"""Where rows come from, by a name or by the end of a file's name; any other name is one of a data set on the hub."""

FILE_KINDS = {name: source for name, source in SOURCES.items() if isinstance(source, FileSource)}


def generated_source(names: Sequence[str]) -> GeneratedSource | None:
    """The source that the package generates, if the names ask for one.

    Raises:
        ConfigError: it is to be mixed with others.
    """
    generated = [name for name in names if isinstance(SOURCES.get(name), GeneratedSource)]
    if generated and len(names) > 1:
        raise ConfigError(
            f"--data {generated[0]} stands alone; give it, or files, but not both (got {' '.join(names)})"
        )
    source = SOURCES[generated[0]] if generated else None
    return source if isinstance(source, GeneratedSource) else None


def open_rows(
    names: Sequence[str], arguments: DataArguments, cache_dir: str | None = None, flag: str = "--data"
) -> Rows:
    """The rows of files, globs, folders or hub data sets, concatenated in the order given.

    Args:
        names: what stands after `flag`.
        arguments: columns, splits, whether to stream.
        cache_dir: where `datasets` keeps its Arrow files; its own default if absent.
        flag: `--data` or `--eval_data`, as it stands in errors.

    Raises:
        ConfigError: nothing matches, all files are empty, a row can't be learnt from (with its line), a column is
            missing, or plain text is mixed with conversations.
    """
    columns = Columns(arguments.text_column, arguments.messages_column, arguments.text_unit)
    # All names first: a mistyped one is told of before another is read.
    found = [(name, find_files(name, flag)) for name in names]
    parts: list[Rows] = []
    notices: list[str] = []
    for name, files in found:
        if not files:
            parts.append(_open_hub(name, arguments, columns, cache_dir, flag))
            continue
        # A row of each file: whether they go together is known before any is read whole.
        kinds = {file: _first_kind(file, columns) for file in files}
        notices += [f"{_nothing_in(file)}, so it is skipped" for file, kind in kinds.items() if kind is None]
        full = {file: kind for file, kind in kinds.items() if kind is not None}
        _one_kind(full)
        if full:
            kind = next(iter(full.values()))
            parts.append(_open_files(list(full), kind, columns, arguments.streaming, cache_dir))
    if not parts:
        empty = "; ".join(_nothing_in(file) for file in [file for _, files in found for file in files][:3])
        raise ConfigError(f"{flag} {short(' '.join(names))} holds nothing to learn from: {empty}; name files with text")
    _one_kind({part.name: part.kind for part in parts})
    whole = parts[0].dataset if len(parts) == 1 else datasets.concatenate_datasets([part.dataset for part in parts])
    return Rows(whole, parts[0].kind, ", ".join(names), tuple(notices))


def read_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file from first to last, each checked; none of an empty file.

    Raises:
        ConfigError: a row can't be learnt from, or is of another kind than the rows before; the text has the file, the
            line or row, what stands there and what to do.
    """
    kind: RowKind | None = None
    for row in FILE_KINDS[file.suffix.lower()].read(file, columns):
        if kind is not None and row.kind != kind:
            raise ConfigError(f"{row.place} holds {row.kind} but the lines before hold {kind}; train on one at a time")
        kind = row.kind
        yield row._replace(value=checked_value(row.value, row.kind, columns, row.place))


def find_files(name: str, flag: str = "--data") -> list[Path]:
    """The data files that a path, folder or glob names, sorted; empty when `name` can only be a hub data set.

    Raises:
        ConfigError: `name` looks like a path but no data file is there, or a file is of an unknown kind.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in FILE_KINDS and file.is_file())
        if not files:
            raise ConfigError(f"{flag} {name}: the folder holds no {', '.join(FILE_KINDS)} file")
    else:
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not files and _looks_like_path(name):
            raise ConfigError(
                f"{flag} {name}: no file matches (looked in {Path.cwd()}); give {EMBEDDED!r}, files "
                f"({' '.join(FILE_KINDS)}), a glob, a folder or the name of a data set on the hub"
            )
    for file in files:
        if file.suffix.lower() not in FILE_KINDS:
            allowed = ", ".join(FILE_KINDS)
            raise ConfigError(f"{flag} {file}: files of kind {file.suffix!r} can't be read; allowed: {allowed}")
    return files


def _one_kind(kinds: dict[Any, RowKind]) -> None:
    # Reversed, so that of each kind the first place is named.
    places = {kind: place for place, kind in reversed(kinds.items())}
    if len(places) > 1:
        raise ConfigError(
            f"{places['text']} holds plain text but {places['messages']} holds conversations; train on one kind at a "
            "time"
        )


def _first_kind(file: Path, columns: Columns) -> RowKind | None:
    row = next(read_rows(file, columns), None)
    return None if row is None else row.kind


def _nothing_in(file: Path) -> str:
    if file.stat().st_size == 0:
        return f"{file} is empty"
    return f"{file} has {FILE_KINDS[file.suffix.lower()].without_rows}"


def _open_files(files: list[Path], kind: RowKind, columns: Columns, streaming: bool, cache_dir: str | None) -> Rows:
    # With the moment of the last change in them, so that `datasets` does not take an old copy for a changed file.
    stamps = [[file.stat().st_mtime_ns, file.stat().st_size] for file in files]
    kwargs = {"files": [str(file) for file in files], "stamps": stamps, "kind": kind, "columns": tuple(columns)}
    if streaming:
        for file in files:
            for _ in islice(read_rows(file, columns), ROWS_CHECKED_WHEN_STREAMING):
                pass
        return Rows(datasets.IterableDataset.from_generator(_cells, gen_kwargs=kwargs), kind, str(files[0]))
    names = ["text"] if kind == "text" else ["messages", "place"]
    features = datasets.Features({name: datasets.Value("string") for name in names})
    try:
        loaded = datasets.Dataset.from_generator(_cells, features=features, cache_dir=cache_dir, gen_kwargs=kwargs)
    except datasets.exceptions.DatasetGenerationError as error:
        # `datasets` wraps what the generator raised; ours names the file and the line.
        if isinstance(error.__cause__, (ConfigError, OSError)):
            raise error.__cause__ from None
        raise
    return Rows(loaded, kind, str(files[0]))


def _cells(
    files: list[str], stamps: list[list[int]], kind: RowKind, columns: tuple[str, str, str]
) -> Iterator[dict[str, str]]:
    """The rows as `datasets` keeps them; conversations as JSON, since messages may differ in what else they have."""
    for file in files:
        for row in read_rows(Path(file), Columns(*columns)):
            yield {"text": row.value} if kind == "text" else {"messages": json.dumps(row.value), "place": row.place}


def _open_hub(name: str, arguments: DataArguments, columns: Columns, cache_dir: str | None, flag: str) -> Rows:
    answer = ask_hub(name, "dataset")
    # Offline, `datasets` still opens what it has kept, in a folder of this name.
    known = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if answer.found is False or (answer.found is None and not known.exists()):
        raise ConfigError(f"{flag} {name}: there is no such file or folder here, and {answer.reason}")
    try:
        loaded = datasets.load_dataset(
            name, arguments.data_config, split=arguments.data_split, streaming=arguments.streaming, cache_dir=cache_dir
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{flag} {name}: there is no such file or folder here, and the hub could not give a data set of that name "
            f"({type(error).__name__}: {short(' '.join(str(error).split()), 300)})"
        ) from error
    where = f"{flag} {name}"
    kind = columns.kind_of(loaded.column_names or list(next(iter(loaded))), where)
    column = columns.messages if kind == "messages" else columns.text
    return Rows(_checked_rows(loaded.select_columns([column]), column, kind, columns, where), kind, name)


def _checked_rows(loaded: RowDataset, column: str, kind: RowKind, columns: Columns, where: str) -> RowDataset:
    """The data set with its column named `kind`, each row checked: text at once, conversations as they are read."""
    if kind == "text" and isinstance(loaded, datasets.Dataset):
        cells = loaded.data.column(column)
        # One value's type holds for all but those that are absent.
        for index in {0, max(0, cells.is_null().index(True).as_py())} if len(cells) else ():
            checked_value(cells[index].as_py(), kind, columns, f"{where} row {index + 1}")
        return loaded if column == kind else loaded.rename_column(column, kind)

    def check(row: dict[str, Any], index: int) -> dict[str, str]:
        place = f"{where} row {index + 1}"
        value = checked_value(row[column], kind, columns, place)
        return {"text": value} if kind == "text" else {"messages": json.dumps(value), "place": place}

    return loaded.map(check, with_indices=True, remove_columns=[column])


def _looks_like_path(name: str) -> bool:
    known = Path(name).suffix.lower() in FILE_KINDS
    return known or name.startswith((".", "/", "~")) or any(sign in name for sign in "*?[\\")
