"""Files and folders that appear whole or not at all: written aside, flushed to disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to; on leaving without an error the file takes its place at `path` in one step."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield aside
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder to fill; on leaving without an error it takes its place at `path` in one step.

    A folder that is already at `path` is removed only once the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for entry in sorted(aside.rglob("*")):
            flush(entry)
        flush(aside)
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the file or folder on disk before going on, so that a power cut cannot undo a later rename."""
    if path.is_dir() and os.name == "nt":
        # Windows cannot open a folder, and makes renames durable by itself.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
