"""Pulls a model from the Hub into a folder, which appears when all of it has arrived and is what the Hub has."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from moe_hf.base.destination import require_free_folder
from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import atomic_folder, one_disk_error
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.sharing.hub_errors import in_words
from moe_hf.sharing.shared_files import is_pickle, require_model_names, require_sound_files

_CHUNK = 2**20


class PullReport(NamedTuple):
    """What was pulled.

    Attributes:
        folder: where it is.
        commit: the SHA of the commit that it is.
        names: of its files.
        size: of them, in bytes.
        left_out: pickles, which can run code.
        code: Python files, which run when somebody asks for it.
    """

    folder: Path
    commit: str
    names: list[str]
    size: int
    left_out: list[str]
    code: list[str]


def pull_model(
    repo_id: str, destination: str | Path, revision: str | None = None, overwrite: bool = False
) -> PullReport:
    """Pull a model of the Hub into a folder.

    All files are of one commit, also where the branch moves meanwhile. They are written beside the folder, under
    `.NAME.pulling`, where the next call finds what has arrived before an interruption. Sizes and checksums are compared
    with the Hub's, and the headers of safetensors read, before the folder appears.

    Args:
        repo_id: owner/name.
        destination: must not exist, or be empty, unless `overwrite`.
        revision: a branch, a tag or a commit; None is `main`.
        overwrite: replace `destination`, which must be a model's folder, once the new one is complete.

    Raises:
        CheckpointError: the Hub has no such model or revision, it has no safetensors, a name in it leads out of the
            folder, a file is damaged, or the destination is taken.
        ConfigError: the Hub takes no such name.
        OSError: the Hub cannot be reached, or the disk is full.
    """
    given = Path(destination).expanduser()
    # What a link leads to: the files arrive beside it, on its disk.
    destination = Path(os.path.realpath(given))
    require_free_folder(given, overwrite)
    api = HfApi()
    with in_words(repo_id, revision):
        commit = str(api.repo_info(repo_id, revision=revision).sha)
        entries = api.list_repo_tree(repo_id, recursive=True, revision=commit)
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    _require_plain_names(files, repo_id)
    require_model_names(repo_id, files)
    left_out = sorted(name for name in files if is_pickle(name))
    wanted = {name: file for name, file in files.items() if name not in left_out and name != ".gitattributes"}
    with _staging(destination) as staging, one_disk_error(destination):
        with in_words(repo_id, commit):
            api.snapshot_download(
                repo_id,
                revision=commit,
                local_dir=staging,
                ignore_patterns=[_literal(name) for name in (*left_out, ".gitattributes")],
            )
        for name, file in wanted.items():
            _require_same(staging / name, file, repo_id)
        require_sound_files(staging, wanted)
        # What came into the folder meanwhile is somebody's. Asked here, what has arrived stays for the next call.
        require_free_folder(given, overwrite)
        with atomic_folder(destination) as aside:
            for name in wanted:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / name, aside / name)
            require_free_folder(given, overwrite)
    size = sum(file.size for file in wanted.values())
    code = sorted(name for name in wanted if name.endswith(".py"))
    return PullReport(given, commit, sorted(wanted), size, left_out, code)


def _require_plain_names(names: Iterable[str], repo_id: str) -> None:
    """Refuse a repository whose names would be written somewhere else, on this system or another."""
    bad = []
    for name in names:
        parts = name.split("/")
        plain = all(
            part.isprintable()
            and not {"\\", ":"} & set(part)
            # Some systems know no case, and leave out dots and spaces at the end.
            and part.rstrip(". ").casefold() not in ("", ".git")
            for part in parts
        )
        if not plain or PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
            bad.append(repr(name))
        # There the downloader keeps what it knows of the files beside it.
        elif parts[0].rstrip(". ").casefold() == ".cache":
            bad.append(repr(name))
    if bad:
        raise CheckpointError(
            f"{repo_id} names files that lead out of its folder ({listed(bad)}); don't use this model"
        )


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """The folder beside the destination in which files arrive; it stays when the body fails, for the next call."""
    staging = destination.with_name(f".{destination.name}.pulling")
    staging.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder: in it, a file of the repository could take its place.
    lock = staging.with_name(f"{staging.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                staging.mkdir(exist_ok=True)
                yield staging
                shutil.rmtree(staging)
            finally:
                # Windows removes no file that is open: there it stays, and is locked again by the next call.
                with suppress(PermissionError):
                    lock.unlink(missing_ok=True)
    except Timeout as error:
        raise CheckpointError(f"another call is pulling into {destination}; wait for it, or stop it") from error


def _require_same(path: Path, file: RepoFile, repo_id: str) -> None:
    """Compare a file with what the Hub says of it; one that differs is removed, so that the next call gets it anew."""
    found = path.stat().st_size if path.is_file() else None
    if found == file.size and _hash(path, file) == (file.lfs.sha256 if file.lfs else file.blob_id):
        return
    path.unlink(missing_ok=True)
    why = "did not arrive" if found is None else f"has {found} bytes instead of {file.size}"
    if found == file.size:
        why = "does not have the checksum that the Hub names"
    raise CheckpointError(f"{file.path} of {repo_id} {why}; pull again")


def _hash(path: Path, file: RepoFile) -> str:
    # Large files are known by their SHA-256, others by what git calls them.
    checksum = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
