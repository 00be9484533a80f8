"""What bench and profile share: devices, folders and tables."""

import pytest
import torch
from rich.console import Console

from moe_hf.base.errors import ConfigError
from moe_hf.cli.measuring import chosen_device, report_folder, table_of


def test_the_device_is_the_one_of_that_name_or_what_there_is(monkeypatch):
    assert chosen_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(None) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(None) == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device here"):
        chosen_device("cuda")
    with pytest.raises(ConfigError, match="device='mps' is not allowed"):
        chosen_device("mps")


def test_the_folder_is_made_and_a_file_in_its_place_is_refused(tmp_path):
    assert report_folder(None) is None
    assert report_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("here")
    with pytest.raises(ConfigError, match="a file is in its place"):
        report_folder(str(tmp_path / "file"))


def test_words_stand_to_the_left_and_numbers_to_the_right(capsys):
    table = table_of(["arm", "kind", "ms"], [["a", "b", "1"], ["longer", "longer", "100.0"]], words=["kind"])
    Console(width=60).print(table)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("a "))
    assert row.split() == ["a", "b", "1"]
    assert row.index("b") < row.index("1") - 8
