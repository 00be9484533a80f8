"""Finds the models of this machine: the runs of a folder, and what the Hub's cache holds."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CachedRepoInfo, CacheNotFound, HFCacheInfo, constants, scan_cache_dir

from moe_hf.base.model_folder import model_type_in, stored_parameters, weights_file

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_REMOVED = re.compile(r"\..+\.removed-(\d+)")


class LocalModel(NamedTuple):
    """A model of this machine.

    Attributes:
        name: what `moe-hf rm` takes: the folder of a run, or the id of a model of the cache.
        model: what `chat.py --model` takes; of a run that has no model yet it is the newest checkpoint.
        family: the type that its configuration names; None if it names none.
        parameters: numbers that its weights store; None where they can't be read.
        size: bytes on the disk, checkpoints included; None where the folder can't be read.
        changed: when it was written last, seconds since 1970; None where that is not known.
        place: `run` or `cache`.
    """

    name: str
    model: str
    family: str | None
    parameters: int | None
    size: int | None
    changed: float | None
    place: str

    @property
    def record(self) -> dict[str, Any]:
        """The model as an object for JSON, with the date as ISO 8601 writes it."""
        if self.changed is None:
            return self._asdict()
        when = datetime.fromtimestamp(self.changed).astimezone().isoformat(timespec="seconds")
        return self._asdict() | {"changed": when}


def local_models(runs_dir: Path) -> list[LocalModel]:
    """The models under `runs_dir`, then those of the Hub's cache; each group newest first.

    A run that has no model yet shows what its newest checkpoint says.
    """
    runs = [model for folder in _folders(runs_dir) if (model := _run(folder)) is not None]
    cache = hub_cache()
    cached = [_cached(repo) for repo in cached_repos(cache) if repo.revisions]
    halves = [LocalModel(name, name, None, None, size_of(at), None, "cache") for name, at in half_cached(cache)]
    return [*_newest_first(runs), *_newest_first([*cached, *halves])]


def half_removed(runs_dir: Path) -> list[Path]:
    """The leftovers of runs, and of their checkpoints."""
    return [
        left for folder in [runs_dir, *_folders(runs_dir)] if os.access(folder, os.R_OK) for left in leftovers(folder)
    ]


def leftovers(folder: Path) -> list[Path]:
    """What removals that were interrupted, or failed, left in a folder: nobody goes on with them."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    named = [(entry, match) for entry in entries if (match := _REMOVED.fullmatch(entry.name)) and entry.is_dir()]
    return [entry for entry, match in named if not (entry.is_symlink() or _is_alive(int(match[1])))]


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        # There is no question there that does not end the process; leftovers stay.
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _run(folder: Path) -> LocalModel | None:
    try:
        whole = next((where for where in [folder, *checkpoints(folder)] if weights_file(where) is not None), None)
        if whole is None or (weights := weights_file(whole)) is None:
            return None
        changed = weights.stat().st_mtime
    except FileNotFoundError:
        # It goes while it is looked at.
        return None
    except OSError:
        # It can't be read; that must not hide the others.
        return LocalModel(str(folder), str(folder), None, None, None, None, "run")
    return LocalModel(
        str(folder), str(whole), model_type_in(whole), stored_parameters(whole), size_of(folder), changed, "run"
    )


def _cached(repo: CachedRepoInfo) -> LocalModel:
    newest = max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
    folder, name = newest.snapshot_path, repo.repo_id
    return LocalModel(
        name, name, model_type_in(folder), stored_parameters(folder), repo.size_on_disk, repo.last_modified, "cache"
    )


def half_cached(cache: HFCacheInfo | None) -> list[tuple[str, Path]]:
    """Ids and folders of the models of which the cache holds bytes, but no whole file: a download was interrupted."""
    if cache is None:
        return []
    whole = {repo.repo_path.name for repo in cached_repos(cache) if repo.revisions}
    folders = [folder for folder in _folders(Path(constants.HF_HUB_CACHE)) if folder.name.startswith("models--")]
    halves = [folder for folder in folders if folder.name not in whole and size_of(folder / "blobs")]
    return [(folder.name.removeprefix("models--").replace("--", "/"), folder) for folder in halves]


def cached_repos(cache: HFCacheInfo | None) -> list[CachedRepoInfo]:
    """The models of the cache."""
    return [] if cache is None else [repo for repo in cache.repos if repo.repo_type == "model"]


def hub_cache() -> HFCacheInfo | None:
    """What the Hub's cache holds; None if there is none."""
    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None


def _folders(folder: Path) -> list[Path]:
    # Hidden ones are being written or removed.
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run, newest first."""
    found = [(int(match[1]), entry) for entry in _folders(folder) if (match := CHECKPOINT.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found, reverse=True)]


def files_of(folder: Path) -> list[Path]:
    """All files below a folder; links are not followed."""
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder."""
    size = 0
    for file in files_of(folder):
        # A run may write and rename its files meanwhile.
        with suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def _newest_first(models: Iterable[LocalModel]) -> list[LocalModel]:
    return sorted(models, key=lambda model: model.changed or 0.0, reverse=True)
