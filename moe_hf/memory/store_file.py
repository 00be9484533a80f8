"""The file of a vector store: `.npz` without pickle, written whole or not at all, and checked before it is believed.

Shapes: N vectors, D width.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from moe_hf.base.errors import CheckpointError, reading
from moe_hf.base.files import atomic_file

FORMAT, VERSION = "moe_hf.vector_store", 1


class Stored(NamedTuple):
    """What a file holds: its header, its arrays, and the metadata of every vector."""

    header: dict[str, Any]
    arrays: dict[str, numpy.ndarray]
    metadata: list[dict[str, Any]]


def write_store(
    file: Path, header: Mapping[str, Any], arrays: Mapping[str, numpy.ndarray], metadata: list[Any]
) -> None:
    """Write a store aside, flush it, and put it in the place of `file`; only its owner may read it."""
    texts = {"header": {"format": FORMAT, "version": VERSION, **header}, "metadata": metadata}
    packed = {name: numpy.frombuffer(json.dumps(text).encode(), dtype=numpy.uint8) for name, text in texts.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file, private=True) as aside, open(aside, "wb") as stream:
        numpy.savez(stream, **packed, **arrays)  # type: ignore[arg-type]


def read_store(file: Path) -> Stored:
    """What `write_store` wrote.

    Raises:
        CheckpointError: no such file, a damaged one, one of something else, or one of a newer version.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no vector store at {file}; save one there, or begin with VectorStore(dim)")
    with reading(f"the vector store {file}"):
        arrays = read_arrays(file)
        header = json.loads(arrays.pop("header").tobytes())
        metadata = json.loads(arrays.pop("metadata").tobytes())
    _check(header, file)
    if not isinstance(metadata, list):
        raise CheckpointError(f"the vector store {file} is damaged: its metadata are no list")
    return Stored(header, arrays, metadata)


def read_header(file: Path) -> dict[str, Any]:
    """The header alone, without the vectors; errors as in `read_store`."""
    with reading(f"the vector store {file}"), _parts(file) as loaded:
        header = json.loads(loaded["header"].tobytes())
    _check(header, file)
    return dict(header)


def _check(header: Any, file: Path) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{file} holds no vector store; name a file that VectorStore.save wrote")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{file} is of version {header.get('version')!r}, and this package reads version {VERSION}; update moe_hf"
        )


def read_arrays(file: Path) -> dict[str, numpy.ndarray]:
    """The arrays of an `.npz` file, none of them pickled; other errors are numpy's and zipfile's own.

    Raises:
        CheckpointError: parts are compressed, which ours never are, or overlap: unpacked they may fill the memory.
    """
    with _parts(file) as loaded:
        return {name: loaded[name] for name in loaded.files}


@contextmanager
def _parts(file: Path) -> Iterator[Any]:
    # numpy leaves a file that is none open when it fails; this one is closed in any case.
    with open(file, "rb") as stream:
        with zipfile.ZipFile(stream) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > file.stat().st_size:
            raise CheckpointError(f"{file} would unpack to {size:,} bytes, more than it has; it is not read")
        stream.seek(0)
        with numpy.load(stream, allow_pickle=False) as loaded:
            yield loaded
