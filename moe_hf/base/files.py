"""Atomic writes of files and folders: written under another name, flushed to disk, then renamed."""

import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_hf.base.errors import CheckpointError

if sys.platform != "win32":
    import fcntl


@contextmanager
def atomic_file(path: str | os.PathLike, private: bool = False) -> Iterator[Path]:
    """A temporary path to write to; on leaving without an error it is renamed to `path` in one atomic step.

    A file that is there already keeps its mode, and a symbolic link stays one: what it leads to is replaced.

    Args:
        path: the file.
        private: a new file is for its owner alone (mode 0600), also while it is written.
    """
    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600 if private else None
    with one_disk_error(path), _names_aside(path) as (aside, _):
        try:
            if mode is not None:
                # Whoever may not read it afterwards does not read it meanwhile either.
                os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            yield aside
            if mode is not None:
                aside.chmod(mode)
            # First the bytes, then the name, then its folder: after a power cut the old file or the new one is whole.
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike, require_free: Callable[[], None] | None = None) -> Iterator[Path]:
    """A temporary folder to fill; on leaving without an error it is renamed to `path` in one atomic step.

    A folder that is already at `path` is removed only once the new one has taken its place. A symbolic link stays one:
    what it leads to is replaced.

    Args:
        path: the folder.
        require_free: raises where `path` may not be replaced; called when all is written, since others may have put
            something there meanwhile.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_disk_error(path), _names_aside(path) as (aside, old):
        # That of an earlier process with this number stands here only beside a living writer.
        _remove(aside)
        aside.mkdir()
        try:
            yield aside
            for entry in sorted(aside.rglob("*")):
                flush(entry)
            flush(aside)
            if require_free is not None:
                require_free()
            try:
                # A kill between the two renames leaves nothing at `path`; the next writer puts the old one back.
                if path.exists():
                    os.replace(path, old)
                os.replace(aside, path)
            except BaseException:
                _put_back(old, path)
                raise
            if old.exists():
                # By this name nobody will take it for something to put back.
                os.replace(old, aside)
            flush(path.parent)
        finally:
            _remove(aside)


@contextmanager
def _names_aside(path: Path) -> Iterator[tuple[Path, Path]]:
    """Temporary names beside `path`: for what is being written, and for what was there before.

    What killed processes left under such names is removed first. Every writer holds a shared lock on the folder, so
    whoever gets it alone knows that the leftovers are nobody's; a number of a process says less: it may be given
    again, or be that of another machine.
    """
    partial, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("partial", "old"))
    if sys.platform == "win32":
        # A folder can't be locked there; leftovers stay.
        yield partial, old
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        if _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _remove_leftovers(path)
        # Down from exclusive: others may write beside this one, but nobody tidies up meanwhile.
        _lock(folder, fcntl.LOCK_SH)
        yield partial, old
    finally:
        os.close(folder)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        # Another writer has it, or the file system knows no locks.
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    for entry in list(path.parent.iterdir()):
        match = re.fullmatch(rf"\.{re.escape(path.name)}\.(partial|old)-\d+", entry.name)
        if not match or (match[1] == "old" and _put_back(entry, path)):
            continue
        _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _put_back(old: Path, path: Path) -> bool:
    """Whether `old` had to take its place again, since nothing else did."""
    if path.exists() or not old.exists():
        return False
    os.replace(old, path)
    return True


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds, which must be an object.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a JSON object; download it again")
    return found


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


@contextmanager
def one_disk_error(path: str | os.PathLike) -> Iterator[None]:
    """Within the `with` block a disk that is full or takes nothing is an OSError that names `path`, whoever met it.

    The libraries that write weights and tokenizers say so by errors of their own, among them plain exceptions; what
    is no error of the disk passes unchanged.
    """
    try:
        yield
    except OSError as error:
        # One with a name says all; one without a number came from no disk.
        if error.filename is not None or error.errno is None:
            raise
        raise _disk_error(error.errno, error.strerror or str(error), path) from error
    except Exception as error:
        # Rust's errors end with "(os error 28)"; torch's writer knows no more than that the write failed.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is not None:
            raise _disk_error(int(number[1]), os.strerror(int(number[1])), path) from error
        if not re.search(r"PytorchStreamWriter failed|iostream error|inline_container", str(error)):
            raise
        raise _disk_error(errno.EIO, "a write failed", path) from error


def _disk_error(number: int, reason: str, path: str | os.PathLike) -> OSError:
    existing = next(parent for parent in Path(path).absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return OSError(number, f"{reason} ({free:,.0f} MB free)", str(path))
