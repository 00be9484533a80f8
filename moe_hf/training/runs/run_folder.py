"""Chooses the folder of a run: a new one, or that of an interrupted run of the same settings."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from moe_hf.base.errors import ConfigError
from moe_hf.training.checkpoint import newest_valid_checkpoint, require_valid_checkpoint
from moe_hf.training.runs.run_file import read_run_file

RUN_FILE = "run.yaml"
LOCK_FILE = ".lock"

# Settings that change what is seen or kept, not what is trained.
_FREE_SETTINGS = (
    "questions_per_skill",
    "license",
    "allow_any_learning_rate",
    "run_name",
    "project",
    "report_to",
    "disable_tqdm",
    "push_to_hub",
    "eval_on_start",
    "eval_delay",
    "per_device_eval_batch_size",
)
_FREE_PREFIXES = ("logging_", "save_", "eval_s", "hub_", "log_", "trackio_")


class RunFolder(NamedTuple):
    """Where a run writes, and the checkpoint that it continues from, if any."""

    path: Path
    checkpoint: str | None


@contextmanager
def taken_run_folder(path: Path, settings: Mapping[str, Any], resume: str, named_by_user: bool) -> Iterator[RunFolder]:
    """The folder that `choose_run_folder` chooses, made, and locked against other runs within the `with` block.

    The lock belongs to the process: however that ends, the folder is free again.

    Raises:
        ConfigError, CheckpointError: as `choose_run_folder`; also when a folder that the user named is in use.
    """
    while True:
        folder = choose_run_folder(path, settings, resume, named_by_user)
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            # Another process was a moment faster; now its lock is seen.
            continue
        try:
            yield folder
        finally:
            # The file stays: whoever had opened it before it was removed would lock a file that no one else finds.
            lock.release()
        return


def choose_run_folder(
    path: Path, settings: Mapping[str, Any], resume: str, named_by_user: bool, undecided: Collection[str] = ()
) -> RunFolder:
    """The folder of a run.

    A folder that is absent or has no run in it is taken. An interrupted run of the same settings is continued when
    `resume` is "auto". Anything else in the way is left alone: a folder that the user named is refused, otherwise the
    next free of `path`, `path-2`, `path-3` ... is taken. Nothing is written.

    Args:
        path: where the run would write.
        settings: all settings of the run, as a run file holds them.
        resume: "auto", "never" or a checkpoint directory.
        named_by_user: whether `path` was asked for.
        undecided: settings that are not compared, since the data will decide them.

    Raises:
        ConfigError: the folder that the user named can't be used.
        CheckpointError: `resume` names a folder that is no complete checkpoint.
    """
    if resume not in ("auto", "never"):
        return _folder_of_checkpoint(Path(resume), path if named_by_user else None, settings)
    _check_can_be_made(path)
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        obstacle = _obstacle(candidate, settings, resume, undecided)
        if obstacle is None:
            continued = (candidate / RUN_FILE).is_file()
            return RunFolder(candidate, newest_valid_checkpoint(str(candidate)) if continued else None)
        if named_by_user:
            raise ConfigError(f"--output_dir {candidate} {obstacle}")
        number += 1


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two runs and matter for what is trained, as "name: before -> now"."""
    names = [name for name in dict.fromkeys([*before, *now]) if not _is_free(name)]
    return [f"{n}: {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]


def _check_can_be_made(folder: Path) -> None:
    # What is there already decides whether the rest can be made.
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise ConfigError(f"--output_dir {folder} can't be made: {present} is a file; name a folder")
    if not os.access(present, os.W_OK | os.X_OK):
        raise ConfigError(f"--output_dir {folder} can't be written: {present} does not allow it; name another folder")


def _obstacle(folder: Path, settings: Mapping[str, Any], resume: str, undecided: Collection[str]) -> str | None:
    if _in_use(folder):
        return "is in use by another run; wait for its end or name another folder"
    if (folder / "config.json").is_file():
        return "already holds a model; name another folder, continue the model with --model, or delete the folder"
    if not (folder / RUN_FILE).is_file():
        return None
    if resume == "never":
        return "holds an interrupted run; continue it with --resume auto, name another folder, or delete the folder"
    changes = changed_settings(read_run_file(folder / RUN_FILE), settings)
    changes = [change for change in changes if change.split(":")[0] not in undecided]
    if changes:
        return (
            f"holds an interrupted run of other settings ({'; '.join(changes[:3])}); continue it with "
            f"--config {folder / RUN_FILE} --output_dir {folder}, name another folder, or delete the folder"
        )
    return None


def _folder_of_checkpoint(checkpoint: Path, named: Path | None, settings: Mapping[str, Any]) -> RunFolder:
    require_valid_checkpoint(str(checkpoint))
    folder = named or checkpoint.resolve().parent
    run_file = checkpoint.parent / RUN_FILE
    # The length of a run may change when its checkpoint is named; its model and data may not.
    changes = changed_settings(read_run_file(run_file), settings) if run_file.is_file() else []
    changes = [change for change in changes if change.split(":")[0] not in ("max_steps", "num_train_epochs")]
    if changes:
        raise ConfigError(
            f"--resume {checkpoint}: it belongs to a run of other settings ({'; '.join(changes[:3])}); give "
            f"--config {run_file} as well"
        )
    if _in_use(folder):
        raise ConfigError(f"--resume {checkpoint}: {folder} is in use by another run; wait for its end")
    return RunFolder(folder, str(checkpoint))


def _in_use(folder: Path) -> bool:
    """Whether another process trains in the folder at this moment."""
    # To ask for the lock would make its file, and whoever only looks for a folder writes nothing.
    if not (folder / LOCK_FILE).is_file():
        return False
    # That the file is there says nothing, since it stays: whether it can be locked does.
    try:
        with FileLock(folder / LOCK_FILE).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _is_free(name: str) -> bool:
    return name in _FREE_SETTINGS or name.startswith(_FREE_PREFIXES)
