"""The format of checkpoints, which are either complete or not there: written aside, checked before they are used."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import flush, one_disk_error

MANIFEST_NAME = "manifest.json"
"""Last file written into a checkpoint: every other file in it, its size in bytes and its CRC-32."""
RUN_STATE_NAME = "run_state.pt"
"""File with what transformers' Trainer does not keep: the place in a streamed data set, the open logging window."""
STATE_NAME = "trainer_state.json"
"""File with the state of transformers' Trainer."""

logger = logging.get_logger(__name__)

_STAGING_PREFIX = "tmp-"
_WHOLE_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Read by those who resume or load; what they hold is an object.
_OBJECTS = ("config.json", "generation_config.json", *_WEIGHT_INDEXES)
_CHUNK = 2**22
# What was read or written once is not read again by this process; a rename keeps a file's identity.
_checksums: dict[tuple[int, ...], int] = {}
# Folders in which FSDP and DeepSpeed keep weights or optimizer state in a form of their own.
_SHARDED_FOLDERS = ("pytorch_model_fsdp*", "optimizer_*", "global_step*")


@contextlib.contextmanager
def atomic_checkpoint(output_dir: str, step: int, writer: bool = True) -> Iterator[str]:
    """Give a folder to write `checkpoint-<step>` in, and put it in its place only when all of it is on disk.

    The body writes into `<yielded>/checkpoint-<step>`. Afterwards every file and folder is synced to disk, and one
    rename makes the checkpoint visible. A process that is killed at any time before leaves `tmp-checkpoint-<step>`,
    which nobody reads and `remove_leftovers` deletes; a body that raises leaves nothing.

    Args:
        output_dir: folder of the run.
        step: number of the checkpoint.
        writer: False on the processes that only write their part; they leave syncing and renaming to the one that is
            True. The body must then end with a barrier.

    Raises:
        OSError: the disk is full, or does not take it; also where a library says so by an error of its own.
    """
    name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
    # In the run's own folder: a rename is atomic only within one file system.
    staging = Path(output_dir, _STAGING_PREFIX + name)
    written, final = staging / name, Path(output_dir, name)
    try:
        with one_disk_error(final):
            staging.mkdir(parents=True, exist_ok=True)
            yield str(staging)
            if writer:
                _write_manifest(written)
                _sync_tree(written)
    # Errors alone: what a kill or a second Ctrl-C leaves, the next start removes.
    except Exception:
        # A full disk is not kept full.
        if writer:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    if not writer:
        return
    if final.exists():
        # A folder cannot be replaced by a rename while it has content: a broken one of the same step goes aside.
        final.rename(staging / "replaced")
    os.replace(written, final)
    # The rename itself is on disk only once the folder that holds the name is.
    flush(Path(output_dir))
    shutil.rmtree(staging)


def remove_leftovers(output_dir: str) -> list[str]:
    """Delete what killed saves left in `output_dir`, and say which folders those were."""
    leftovers = sorted(Path(output_dir).glob(f"{_STAGING_PREFIX}{PREFIX_CHECKPOINT_DIR}-*"))
    for leftover in leftovers:
        shutil.rmtree(leftover)
    return [str(leftover) for leftover in leftovers]


def newest_valid_checkpoint(output_dir: str) -> str | None:
    """The `checkpoint-N` with the highest N whose files are complete; None when there is none.

    A warning names those that are passed over, and the file that is at fault.
    """
    for _, folder in sorted(_numbered_checkpoints(output_dir), reverse=True):
        problems = checkpoint_problems(str(folder))
        if not problems:
            return str(folder)
        # Once: the folder of a run is chosen before its data is read, and again when it is taken.
        logger.warning_once(f"{folder} is damaged and passed over: {'; '.join(problems)}")
    return None


def remove_old_checkpoints(output_dir: str, newest: str, limit: int | None, best: str | None = None) -> None:
    """Delete checkpoints of `output_dir` until `limit` are left, never `newest` or `best`.

    Steps beyond `newest` go first: a resumed run has left them behind because they were broken or not wanted. Trainer
    would take the highest number, or the youngest folder, for the newest.

    Args:
        output_dir: folder of the run.
        newest: the checkpoint that was just written.
        limit: None, 0 or less keeps all.
        best: the best checkpoint by the metric of the run, if it is kept apart.
    """
    if limit is None or limit <= 0:
        return
    last = int(newest.rpartition("-")[2])
    kept = {Path(folder).name for folder in (newest, best) if folder}
    numbered = _numbered_checkpoints(output_dir)
    others = [entry for entry in numbered if entry[1].name not in kept]
    # False comes before True: steps beyond the newest are the first to go.
    others.sort(key=lambda entry: (entry[0] < last, entry[0]))
    # Newest and best stay, even where the limit is 1.
    for _, folder in others[: max(0, len(numbered) - max(limit, len(kept)))]:
        # Renamed first: a kill in the midst of deleting leaves no half checkpoint under a name that counts.
        aside = folder.rename(folder.with_name(_STAGING_PREFIX + folder.name))
        shutil.rmtree(aside)


def require_valid_checkpoint(folder: str) -> str:
    """The folder, when it is a complete checkpoint.

    Raises:
        CheckpointError: it is not; the text says what is missing or cut short and which other one can be used.
    """
    problems = checkpoint_problems(folder)
    if problems:
        other = newest_valid_checkpoint(str(Path(folder).parent))
        advice = f"use {other}" if other else "there is no complete checkpoint beside it; start without resuming"
        raise CheckpointError(f"cannot resume from {folder!r}: {'; '.join(problems)}. To go on, {advice}.")
    return folder


def checkpoint_problems(folder: str) -> list[str]:
    """Everything that keeps a training run from resuming from `folder`; empty when it is complete.

    Checked are the manifest (present in the checkpoints of `MoETrainer`) with the checksum of every file, the trainer's
    state, the weights (the header and length of each safetensors file, all shards of an index), optimizer, schedule and
    random state, and that JSON is JSON. A checkpoint written with `--save_only_model` has no such state on purpose and
    is complete without it.

    All bytes are read, at about half a second of CPU time per GB. They are remembered for this process as long as the
    files do not change.
    """
    path = Path(folder)
    if not path.is_dir():
        return ["no such folder"]
    problems = []
    for problems_of in (_manifest_problems, _json_problems, _state_problems, _weight_problems, _resume_problems):
        # A file that cannot be read is one more problem, not the end of the search: another checkpoint may be whole.
        try:
            problems += problems_of(path)
        except OSError as error:
            problems.append(f"{Path(error.filename or folder).name} cannot be read ({error.strerror or error})")
    # Two checks may find the same fault.
    return list(dict.fromkeys(problems))


def save_run_state(state: dict[str, Any], folder: str) -> None:
    """Write the state into a checkpoint folder.

    Raises:
        CheckpointError: it holds more than plain Python values and tensors, which could not be read back safely.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        # Read back at once: else a state that only pickle can restore would show at the resume that needs it.
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"the place in the training stream cannot be saved safely: its state_dict() must hold only plain Python "
            f"values and tensors ({error})"
        ) from error
    with open(os.path.join(folder, RUN_STATE_NAME), "wb") as file:
        file.write(buffer.getbuffer())


def load_run_state(folder: str) -> dict[str, Any]:
    """The state in a checkpoint folder; empty where none was written.

    Warns where the optimizer's is absent, too, which transformers passes over in silence.
    """
    # DeepSpeed keeps it in folders named after steps, FSDP in one of the optimizer's name.
    if not any(name.startswith(("optimizer", "rank", "global_step")) for name in os.listdir(folder)):
        logger.warning(
            f"{folder} holds weights alone, as save_only_model writes them: the optimizer and the course of the "
            "learning rate begin anew, so this is not the run that would have gone on"
        )
    path = os.path.join(folder, RUN_STATE_NAME)
    return torch.load(path, weights_only=True) if os.path.isfile(path) else {}


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file, read from its header and length alone; None when it is whole."""
    try:
        # safetensors compares its header with the length of the file on opening: no tensor need be read.
        with safe_open(path, framework="pt") as file:
            return None if file.keys() else f"{path.name} holds no tensor"
    except SafetensorError as error:
        return f"{path.name} is cut short or damaged ({error})"


def _numbered_checkpoints(output_dir: str) -> list[tuple[int, Path]]:
    numbered = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        # The glob finds "checkpoint-12-copy" as well.
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
        if match and folder.is_dir():
            numbered.append((int(match[1]), folder))
    return numbered


def _write_manifest(folder: Path) -> None:
    # With slashes: a checkpoint may be resumed on another system.
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    manifest = {
        "files": {name: file.stat().st_size for name, file in files.items()},
        "crc32": {name: _checksum(file) for name, file in files.items()},
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def _checksum(path: Path) -> int:
    status = path.stat()
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if version not in _checksums:
        checksum = 0
        with path.open("rb") as file:
            # Piece by piece: a file of weights may be larger than memory.
            while chunk := file.read(_CHUNK):
                checksum = zlib.crc32(chunk, checksum)
        _checksums[version] = checksum
    return _checksums[version]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)


def _sync_tree(folder: Path) -> None:
    # Children before parents: a folder's own sync makes the names in it last.
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(parent, name))
        flush(Path(parent))


def _manifest_problems(path: Path) -> list[str]:
    manifest = path / MANIFEST_NAME
    if not manifest.is_file():
        return []
    content = _read_object(manifest)
    sizes = _object(content.get("files"))
    # Checkpoints of earlier versions have none.
    checksums = _object(content.get("crc32", {}))
    if sizes is None or checksums is None:
        return [f"{MANIFEST_NAME} is unreadable"]
    problems = []
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
        elif name in checksums and _checksum(file) != checksums[name]:
            problems.append(f"{name} does not have the checksum that it was written with")
    return problems


def _json_problems(path: Path) -> list[str]:
    return [f"{name} is unreadable" for name in _OBJECTS if (path / name).is_file() and not _read_object(path / name)]


def _state_problems(path: Path) -> list[str]:
    state = path / STATE_NAME
    if not state.is_file():
        return [f"{STATE_NAME} is missing"]
    content = _read_object(state)
    # `TrainerState.load_from_json` hands every key to its constructor, which refuses those that it does not know.
    fields = {field.name for field in dataclasses.fields(TrainerState)}
    right = isinstance(content.get("global_step"), int) and isinstance(content.get("log_history", []), list)
    right = right and isinstance(content.get("stateful_callbacks", {}), dict) and fields >= set(content)
    return [] if right else [f"{STATE_NAME} is unreadable"]


def _weight_problems(path: Path) -> list[str]:
    problems = [problem for file in path.rglob("*.safetensors") if (problem := safetensors_problem(file))]
    indexes = [path / name for name in _WEIGHT_INDEXES if (path / name).is_file()]
    for index in indexes:
        shards = _object(_read_object(index).get("weight_map"))
        if shards is None or not all(isinstance(shard, str) for shard in shards.values()):
            problems.append(f"{index.name} is unreadable")
            continue
        problems += [f"{shard} is missing" for shard in sorted(set(shards.values())) if not (path / shard).is_file()]
    # peft puts adapters into folders of their names.
    whole = any(found for name in _WHOLE_WEIGHTS for found in path.rglob(name))
    sharded = any(found for pattern in _SHARDED_FOLDERS for found in path.glob(pattern))
    if not (indexes or whole or sharded):
        problems.append(f"no weights ({_WHOLE_WEIGHTS[0]}, an index of shards, or an adapter)")
    return problems


def _resume_problems(path: Path) -> list[str]:
    torch_files = [file for file in path.iterdir() if file.suffix in (".pt", ".pth") and file.is_file()]
    # torch writes zip files, whose table of contents stands at the end: one that was cut short has none.
    problems = [f"{file.name} is cut short" for file in torch_files if not zipfile.is_zipfile(file)]
    names = {file.name for file in torch_files}
    if not names or any(found for pattern in _SHARDED_FOLDERS for found in path.glob(pattern)):
        # Weights only, on purpose; or an optimizer in a form of its own, for which the manifest speaks.
        return problems
    for name in ("optimizer.pt", "scheduler.pt"):
        if name not in names:
            problems.append(f"{name} is missing")
    if not any(name.startswith("rng_state") for name in names):
        problems.append("rng_state.pth is missing")
    return problems


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where it holds anything else."""
    try:
        return _object(json.loads(path.read_text(encoding="utf-8"))) or {}
    except (ValueError, RecursionError):
        return {}


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
