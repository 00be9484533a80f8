import json

import huggingface_hub
import pytest

from moe_hf.__main__ import main


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_the_table_names_each_model_in_full(model_folder, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["list", "--runs_dir", str(model_folder.parent)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if str(model_folder) in line)
    for words in ("gpt2_moe", "run", "kB"):
        assert words in row


def test_json_is_an_array(model_folder, capsys) -> None:
    assert main(["list", "--runs_dir", str(model_folder.parent), "--json"]) == 0
    [model] = json.loads(capsys.readouterr().out)
    assert model["name"] == str(model_folder)
    assert set(model) == {"name", "family", "parameters", "size", "changed", "place"}


def test_where_there_is_none_it_says_how_to_get_one(tmp_path, capsys) -> None:
    assert main(["list", "--runs_dir", str(tmp_path / "none")]) == 0
    assert "python train.py" in capsys.readouterr().out
    assert main(["list", "--runs_dir", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
