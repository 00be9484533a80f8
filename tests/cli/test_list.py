import json
import shutil
import subprocess
import sys

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
    assert set(model) == {"name", "model", "family", "parameters", "size", "changed", "place"}


def test_where_there_is_none_it_says_how_to_get_one(tmp_path, capsys) -> None:
    assert main(["list", "--runs_dir", str(tmp_path / "none")]) == 0
    assert "python train.py" in capsys.readouterr().out
    assert main(["list", "--runs_dir", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_run_that_has_no_model_yet_shows_its_newest_checkpoint(model_folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "runs" / "t" / "checkpoint-7")
    assert main(["list"]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if "runs/t" in line]
    assert "runs/t " in row
    assert "run, checkpoint-7" in row


def test_what_a_removal_left_is_named(tmp_path, capsys) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".t.removed-{ended.pid}").mkdir()
    assert main(["list", "--runs_dir", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == []
    assert f".t.removed-{ended.pid}; the next moe-hf rm ends that" in said.err


def test_what_cant_be_known_is_a_question_mark(tmp_path, capsys) -> None:
    half = tmp_path / "cache" / "models--me--half" / "blobs"
    half.mkdir(parents=True)
    (half / "x.incomplete").write_bytes(bytes(2000))
    assert main(["list", "--runs_dir", str(tmp_path / "none")]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if "me/half" in line]
    assert row.count("?") == 3
    assert "2.0 kB" in row
