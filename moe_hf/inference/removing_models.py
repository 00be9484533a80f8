"""Removes a model of this machine, and nothing but that: a run, a folder, or what the Hub's cache holds of one."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import constants

from moe_hf.base.errors import CheckpointError, ConfigError, did_you_mean
from moe_hf.base.model_folder import WEIGHTS, weights_file
from moe_hf.inference.local_models import (
    CHECKPOINT,
    cached_repos,
    checkpoints,
    files_of,
    half_cached,
    hub_cache,
    leftovers,
    local_models,
    size_of,
)

_LOCK, _RUN_FILE = ".lock", "run.yaml"
# What training, exports, transformers and the Hub put into the folder of a model; anything else is somebody's.
_OWN_FILES = re.compile(
    r"(adapter_|generation_|preprocessor_|processor_|quantize_|adapter_model\.)?config\.json"
    r"|(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|manifest|trainer_state)\.json"
    r"|tokenizer\.model|spiece\.model|vocab\.txt|merges\.txt|chat_template\.(jinja|json)|[^/]+\.gguf"
    r"|(optimizer|scheduler|scaler|run_state)\.(pt|bin)|rng_state(_\d+)?\.pth|training_args\.(bin|json)"
    r"|run\.yaml|metrics\.jsonl|(loss|expert_utilization|load_balance|perplexity|learning_rate)\.png"
    r"|(base|config|layers|models|ops|modeling|configuration|tokenization)_\w+\.py"
    r"|README\.md|LICENSE(\.md|\.txt|\.moe_hf)?|NOTICE(\.txt)?|USE_POLICY\.md|\.gitattributes|\.gitignore|\.lock"
)


class Removal(NamedTuple):
    """What would be removed: how it is called, the bytes that this frees, and how many files."""

    name: str
    size: int
    num_files: int
    place: Path
    strategy: Any = None

    def carry_out(self) -> None:
        """Removes it.

        Raises:
            CheckpointError: a training run writes to the folder, or it is gone.
            OSError: some of it could not be removed; the text says what is left.
        """
        if self.strategy is not None:
            self.strategy.execute()
            # The Hub's library says in its log alone what it could not remove.
            if os.path.lexists(self.place):
                raise OSError(f"could not remove all of {self.name}: {self.place} is still there; see its permissions")
            return
        # Under this name nobody takes what is half removed for a model.
        aside = self.place.with_name(f".{self.place.name}.removed-{os.getpid()}")
        with _no_run_writes(self.place, self.name):
            try:
                os.replace(self.place, aside)
            except FileNotFoundError:
                raise CheckpointError(f"{self.name} is gone: something else moved or removed it") from None
        for leftover in leftovers(self.place.parent):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            shutil.rmtree(aside)
        except OSError as error:
            raise OSError(
                f"could not remove all of {self.name} ({error}); what is left is in {aside}: remove it by rm -r"
            ) from error


def plan_removals(names: Iterable[str], runs_dir: Path) -> list[Removal]:
    """As `plan_removal`, for several models.

    Raises:
        ConfigError: one of them can't be removed, or one is inside another.
    """
    removals = [plan_removal(name, runs_dir) for name in names]
    for index, removal in enumerate(removals):
        for other in removals[index + 1 :]:
            if removal.place.is_relative_to(other.place) or other.place.is_relative_to(removal.place):
                raise ConfigError(f"one of {removal.name} and {other.name} holds the other; name the outer one, once")
    return removals


def plan_removal(name: str, runs_dir: Path) -> Removal:
    """What removing the model of that name would take away; nothing is removed yet.

    Args:
        name: a folder of `runs_dir`, the path of a model folder (it has a slash in it), or the id of a model in the
            Hub's cache.
        runs_dir: where runs are.

    Raises:
        ConfigError: there is no such model, or it can't be told from other files.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name} names no folder: {error}") from error
    for folder in _candidates(name, path, runs_dir):
        if folder.is_symlink() or folder.exists():
            return _folder_removal(folder, name, runs_dir)
    cache = hub_cache()
    for repo in cached_repos(cache):
        if cache is not None and repo.repo_id == name and repo.revisions:
            strategy = cache.delete_revisions(*[revision.commit_hash for revision in repo.revisions])
            size = strategy.expected_freed_size
            return Removal(f"{name} of the Hub's cache", size, repo.nb_files, repo.repo_path, strategy)
    for repo_id, folder in half_cached(cache):
        if repo_id == name:
            return Removal(f"{name} of the Hub's cache", size_of(folder), len(files_of(folder)), folder)
    known = [model.name for model in local_models(runs_dir)]
    raise ConfigError(
        f"there is no model {name!r} here{did_you_mean(name, known)}: not under {runs_dir}/, not a folder, not in the "
        "Hub's cache; moe-hf list shows them"
    )


def _candidates(name: str, path: Path, runs_dir: Path) -> list[Path]:
    if ".." in path.parts:
        # Behind a link, `..` leads elsewhere than it reads.
        if any(part != ".." for part in path.parts[: len(path.parts) - path.parts[::-1].index("..")]):
            raise ConfigError(f"{name} has .. in it; name the folder by a path without")
        return [path]
    # One word names a run: a folder of that name elsewhere must be named by a path, so that no slip removes it.
    return [runs_dir / path] if len(path.parts) == 1 and "/" not in name else [path, runs_dir / path]


def _folder_removal(folder: Path, name: str, runs_dir: Path) -> Removal:
    if (link := _link_on_the_way(folder, runs_dir)) is not None:
        raise ConfigError(f"{link} is a link to {os.readlink(link)}; name the folder itself, or remove the link by rm")
    real = folder.resolve()
    if real in (Path.home().resolve(), *Path.cwd().resolve().parents, Path.cwd().resolve()):
        raise ConfigError(f"{name} is the present folder or one above it; change to another folder first")
    cache = Path(constants.HF_HUB_CACHE).resolve()
    if real.is_relative_to(cache):
        repo = (*real.relative_to(cache).parts, "")[0].removeprefix("models--").replace("--", "/")
        raise ConfigError(f"{name} is in the Hub's cache; name the model by its id: moe-hf rm {repo or 'owner/name'}")
    if not folder.is_dir() or not any(map(weights_file, [real, *checkpoints(real)])):
        raise ConfigError(
            f"{name} is no folder of a model (config.json, model.safetensors and a tokenizer, or checkpoints of them); "
            "moe-hf list shows what is"
        )
    # A run has files of its own, such as those of loggers; what stands beside a model elsewhere is somebody's.
    is_run = real.parent == runs_dir.resolve() and (real / _RUN_FILE).is_file()
    others = [] if is_run else sorted(_foreign(real))
    if others:
        raise ConfigError(
            f"{name} holds more than a model: {', '.join(others[:3])}{', …' * (len(others) > 3)}; move that "
            "elsewhere, or use rm -r"
        )
    return Removal(str(folder), size_of(real), len(files_of(real)), real)


def _link_on_the_way(folder: Path, runs_dir: Path) -> Path | None:
    """The first link among the folders that were named; those above a full path, or above the runs, were not."""
    runs = runs_dir.absolute()
    for step in (folder, *folder.parents):
        if step.absolute() == runs and step != folder:
            return None
        named = step == folder or not folder.is_absolute() or runs in step.parents
        if named and step.is_symlink():
            return step
    return None


def _foreign(folder: Path, inside: str = "") -> Iterator[str]:
    """What in a model's folder is no model's."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if not inside and CHECKPOINT.fullmatch(entry.name) and _has_weights(entry):
                yield from _foreign(entry, f"{entry.name}/")
            # What the Hub's downloader knows of the files.
            elif inside or entry.name != ".cache" or os.listdir(entry) != ["huggingface"]:
                yield f"{inside}{entry.name}/"
        elif not _OWN_FILES.fullmatch(entry.name):
            yield f"{inside}{entry.name}"


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*WEIGHTS, "adapter_model.safetensors"))


@contextmanager
def _no_run_writes(folder: Path, name: str) -> Iterator[None]:
    """A run holds the lock of its folder as long as it goes on; its checkpoints have none of their own."""
    folders = [folder, folder.parent] if CHECKPOINT.fullmatch(folder.name) else [folder]
    with ExitStack() as held:
        for lock in (one / _LOCK for one in folders):
            # Where no run ever was, there is none: to ask for the lock would make its file.
            if lock.is_file():
                try:
                    held.enter_context(FileLock(lock).acquire(timeout=0))
                except Timeout:
                    raise CheckpointError(f"a training run writes to {name}; stop it first") from None
        yield
