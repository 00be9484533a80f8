"""Finds the models of this machine, the runs of a folder and what the Hub's cache holds, and removes one."""

import os
import re
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import CachedRepoInfo, CacheNotFound, HFCacheInfo, constants, scan_cache_dir

from moe_hf.base.errors import CheckpointError, ConfigError, did_you_mean
from moe_hf.base.model_folder import model_type_in, stored_parameters, weights_file

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LOCK = ".lock"


class LocalModel(NamedTuple):
    """A model of this machine.

    Attributes:
        name: what `chat.py --model` takes.
        family: the type that its configuration names; None if it names none.
        parameters: numbers that its weights store; None where they can't be read.
        size: bytes on the disk, checkpoints included.
        changed: when it was written last, seconds since 1970.
        place: `run` or `cache`.
    """

    name: str
    family: str | None
    parameters: int | None
    size: int
    changed: float
    place: str

    @property
    def record(self) -> dict[str, Any]:
        """The model as an object for JSON, with the date as ISO 8601 writes it."""
        when = datetime.fromtimestamp(self.changed).astimezone().isoformat(timespec="seconds")
        return self._asdict() | {"changed": when}


class Removal(NamedTuple):
    """What would be removed: how it is called, the bytes that this frees, and how many files."""

    name: str
    size: int
    num_files: int
    target: "Path | Any"

    def carry_out(self) -> None:
        """Removes it.

        Raises:
            CheckpointError: a training run writes to the folder.
        """
        if not isinstance(self.target, Path):
            self.target.execute()
            return
        lock = FileLock(self.target / _LOCK)
        try:
            # A run holds its lock as long as it goes on.
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"a training run writes to {self.name}; stop it first") from None
        try:
            # Under this name nobody takes what is half removed for a model.
            aside = self.target.with_name(f".{self.target.name}.removed-{os.getpid()}")
            os.replace(self.target, aside)
        finally:
            lock.release()
        shutil.rmtree(aside)


def local_models(runs_dir: Path) -> list[LocalModel]:
    """The models under `runs_dir`, then those of the Hub's cache; each group newest first.

    A run that has no model yet is listed by its newest checkpoint.
    """
    runs = [model for folder in _folders(runs_dir) if (model := _run(folder)) is not None]
    cached = [model for repo in _cached_repos(_cache()) if (model := _cached(repo)) is not None]
    return [*_newest_first(runs), *_newest_first(cached)]


def plan_removal(name: str, runs_dir: Path) -> Removal:
    """What removing the model of that name would take away; nothing is removed yet.

    Args:
        name: a folder of `runs_dir`, the path of a model folder (it has a slash in it), or the id of a model in the
            Hub's cache.
        runs_dir: where runs are.

    Raises:
        ConfigError: there is no such model, or it can't be told from other files.
    """
    path = Path(name).expanduser()
    # One word names a run: a folder of that name elsewhere must be named by a path, so that no slip removes it.
    candidates = [runs_dir / path] if len(path.parts) == 1 and "/" not in name else [path, runs_dir / path]
    for folder in candidates:
        if folder.is_symlink() or folder.exists():
            return _folder_removal(folder, name, runs_dir)
    cache = _cache()
    for repo in _cached_repos(cache):
        if cache is not None and repo.repo_id == name:
            strategy = cache.delete_revisions(*[revision.commit_hash for revision in repo.revisions])
            return Removal(f"{name} of the Hub's cache", strategy.expected_freed_size, repo.nb_files, strategy)
    known = [model.name for model in local_models(runs_dir)]
    raise ConfigError(
        f"there is no model {name!r} here{did_you_mean(name, known)}: not under {runs_dir}/, not a folder, not in the "
        "Hub's cache; moe-hf list shows them"
    )


def _folder_removal(folder: Path, name: str, runs_dir: Path) -> Removal:
    if folder.is_symlink():
        raise ConfigError(
            f"{name} is a link to {os.readlink(folder)}; name the folder itself, or remove the link by rm"
        )
    real = folder.resolve()
    if real in (Path.home().resolve(), *Path.cwd().resolve().parents, Path.cwd().resolve()):
        raise ConfigError(f"{name} is the present folder or one above it; change to another folder first")
    if not folder.is_dir() or not any(map(weights_file, [real, *_checkpoints(real)])):
        raise ConfigError(
            f"{name} is no folder of a model (config.json, model.safetensors and a tokenizer, or checkpoints of them); "
            "moe-hf list shows what is"
        )
    others = [entry.name for entry in sorted(real.iterdir()) if entry.is_dir() and not _CHECKPOINT.match(entry.name)]
    # A run has folders of its own, such as those of loggers; what stands beside a model elsewhere is somebody's.
    if others and real.parent != runs_dir.resolve():
        raise ConfigError(
            f"{name} holds more than a model: the folders {', '.join(others[:3])}; move them elsewhere, or use rm -r"
        )
    files = _files(real)
    return Removal(str(folder), sum(file.lstat().st_size for file in files), len(files), real)


def _run(folder: Path) -> LocalModel | None:
    whole = next((where for where in [folder, *_checkpoints(folder)] if weights_file(where) is not None), None)
    if whole is None:
        return None
    weights = weights_file(whole)
    assert weights is not None
    size = sum(file.lstat().st_size for file in _files(folder))
    return LocalModel(str(whole), model_type_in(whole), stored_parameters(whole), size, weights.stat().st_mtime, "run")


def _cached(repo: CachedRepoInfo) -> LocalModel | None:
    if not repo.revisions:
        return None
    newest = max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
    folder = newest.snapshot_path
    return LocalModel(
        repo.repo_id, model_type_in(folder), stored_parameters(folder), repo.size_on_disk, repo.last_modified, "cache"
    )


def _cached_repos(cache: HFCacheInfo | None) -> list[CachedRepoInfo]:
    return [] if cache is None else [repo for repo in cache.repos if repo.repo_type == "model"]


def _cache() -> HFCacheInfo | None:
    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None


def _folders(folder: Path) -> list[Path]:
    # Hidden ones are being written or removed.
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _checkpoints(folder: Path) -> list[Path]:
    """Those of a run, newest first."""
    found = [(int(match[1]), entry) for entry in _folders(folder) if (match := _CHECKPOINT.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found, reverse=True)]


def _files(folder: Path) -> list[Path]:
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


def _newest_first(models: Iterable[LocalModel]) -> list[LocalModel]:
    return sorted(models, key=lambda model: model.changed, reverse=True)
