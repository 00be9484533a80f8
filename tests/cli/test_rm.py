import io
import shutil
import sys

import huggingface_hub
import pytest

from moe_hf.__main__ import main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def runs(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        shutil.copytree(model_folder, tmp_path / "runs" / name)
    return tmp_path / "runs"


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_it_asks_and_takes_only_yes_for_yes(runs, capsys, monkeypatch, typed, code) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert main(["rm", "one", "--runs_dir", str(runs)]) == code
    assert (runs / "one").exists() == bool(code)
    assert (runs / "two").exists()
    assert "remove " in capsys.readouterr().out


def test_yes_is_not_asked(runs, capsys, stdin) -> None:
    assert main(["rm", "one", "two", "--yes", "--runs_dir", str(runs)]) == 0
    assert list(runs.iterdir()) == []
    assert capsys.readouterr().out.count("removed ") == 2


def test_where_nobody_can_be_asked_nothing_goes(runs, capsys, stdin) -> None:
    assert main(["rm", "one", "--runs_dir", str(runs)]) == 2
    assert "say --yes" in capsys.readouterr().err
    assert (runs / "one").exists()


def test_one_wrong_name_leaves_all_of_them(runs, capsys, stdin) -> None:
    assert main(["rm", "one", "three", "--yes", "--runs_dir", str(runs)]) == 2
    assert "there is no model 'three'" in capsys.readouterr().err
    assert (runs / "one").exists()


def test_one_inside_another_leaves_both(runs, capsys, stdin) -> None:
    shutil.copytree(runs / "two", runs / "one" / "checkpoint-3")
    names = ["one", str(runs / "one" / "checkpoint-3")]
    assert main(["rm", *names, "--yes", "--runs_dir", str(runs)]) == 2
    assert "name the outer one" in capsys.readouterr().err
    assert (runs / "one" / "checkpoint-3").exists()
