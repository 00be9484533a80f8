"""A taken folder and a full disk are refused before anything is written."""

import shutil
from pathlib import Path

import pytest

from moe_hf.base.destination import require_free_folder, require_space
from moe_hf.base.errors import CheckpointError


def test_only_free_folders_and_those_of_models_are_written_to(tmp_path: Path) -> None:
    require_free_folder(tmp_path / "new")
    require_free_folder(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="is a file; name a folder to create"):
        require_free_folder(tmp_path / "notes.txt", overwrite=True)
    with pytest.raises(CheckpointError, match="already exists and is not empty"):
        require_free_folder(tmp_path)
    with pytest.raises(CheckpointError, match="is not the folder of a model"):
        require_free_folder(tmp_path, overwrite=True)
    (tmp_path / "config.json").touch()
    require_free_folder(tmp_path, overwrite=True)


def test_a_full_disk_is_named_with_the_way_out(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "a" / "b", 1, "another disk")
    with pytest.raises(CheckpointError, match=r"GB free; choose another disk$"):
        require_space(tmp_path / "a" / "b", 2 * free + 10**9, "another disk")
