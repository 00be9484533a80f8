"""Checks the folder that a model is to be written to, before anything is computed or lost."""

import shutil
from pathlib import Path

from moe_hf.base.errors import CheckpointError


def require_free_folder(destination: Path, overwrite: bool = False) -> None:
    """Do nothing where a model's folder may be written.

    Args:
        destination: absent, empty, or, with `overwrite`, the folder of a model.
        overwrite: whether what is there may be replaced.

    Raises:
        CheckpointError: it is taken.
    """
    if destination.is_file():
        raise CheckpointError(f"{destination} is a file; name a folder to create")
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{destination} already exists and is not empty; choose another folder or overwrite it")
    # A mistyped folder would be gone for good.
    if not (destination / "config.json").is_file():
        raise CheckpointError(
            f"{destination} is not the folder of a model (it has no config.json) and is not overwritten; choose "
            "another folder, or delete it yourself"
        )


def require_space(destination: Path, needed: int, way_out: str) -> None:
    """Do nothing where the disk of `destination` has room for `needed` bytes.

    Args:
        destination: a file or folder that need not exist yet.
        needed: bytes.
        way_out: what to do about it, as it reads after "choose".

    Raises:
        CheckpointError: it has not.
    """
    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{destination} needs {needed / 1e9:.1f} GB but its disk has {free / 1e9:.1f} GB free; choose {way_out}"
        )
