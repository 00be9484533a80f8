"""A run takes a folder that is free or its own, and no other."""

import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.training.runs import run_folder
from moe_hf.training.runs.run_folder import RUN_FILE, RunFolder, choose_run_folder
from tests.training.runs.tiny_runs import Recorder, same_weights, weights


def test_a_finished_run_is_not_overwritten(finished, go):
    shutil.copytree(finished[2] / "runs", "runs")
    before = weights("runs/tiny-moe")
    assert go("--max_steps 2").model_dir == Path("runs/tiny-moe-2")
    assert all(torch.equal(before[name], value) for name, value in weights("runs/tiny-moe").items())
    with pytest.raises(ConfigError, match="already holds a model"):
        go("--output_dir runs/tiny-moe")


def test_an_interrupted_run_of_other_settings_is_left_alone(go):
    go("--output_dir cut", Recorder(interrupt_at=2))
    with pytest.raises(ConfigError, match="seed: 0 -> 5"):
        go("--output_dir cut --seed 5")
    with pytest.raises(ConfigError, match="interrupted run"):
        go("--output_dir cut --resume never")
    # What is only logged or kept may change.
    assert go("--output_dir cut --logging_steps 1 --license mit").finished


def test_two_runs_at_once_take_two_folders(go):
    class Beside(Recorder):
        def working(self, what):
            if what == "building the model" and not self.events:
                self.events.append(go())
                with pytest.raises(ConfigError, match="in use by another run"):
                    go("--output_dir runs/tiny-moe")

    beside = Beside()
    assert go(listener=beside).model_dir == Path("runs/tiny-moe")
    assert beside.events[0].model_dir == Path("runs/tiny-moe-2")
    # The lock is gone though its file stays, so that all processes lock the same one.
    with FileLock("runs/tiny-moe/.lock").acquire(timeout=0):
        assert Path("runs/tiny-moe/.lock").is_file()


def test_a_named_checkpoint_is_continued_and_a_wrong_one_refused(finished, go):
    shutil.copytree(finished[2] / "runs", "runs")
    recorder = Recorder()
    report = go("--resume runs/tiny-moe/checkpoint-4 --output_dir again", recorder)
    assert [progress.step for progress in recorder.steps] == [5, 6]
    assert same_weights(report.model_dir, "runs/tiny-moe")
    with pytest.raises(CheckpointError, match="no such folder"):
        go("--resume runs/tiny-moe/checkpoint-9")
    with pytest.raises(ConfigError, match="num_experts: None -> 8"):
        go("--resume runs/tiny-moe/checkpoint-4 --num_experts 8 --output_dir other")


@pytest.mark.parametrize(
    ("resume", "taken"),
    [("auto", RunFolder(Path("run"), "run/checkpoint-6")), ("never", RunFolder(Path("run-2"), None))],
)
def test_an_interrupted_run_is_continued_from_its_newest_checkpoint_or_never(resume, taken, monkeypatch):
    Path("run").mkdir()
    Path("run", RUN_FILE).write_text("seed: 1\n", encoding="utf-8")
    monkeypatch.setattr(run_folder, "newest_valid_checkpoint", lambda folder: f"{folder}/checkpoint-6")
    assert choose_run_folder(Path("run"), {"seed": 1}, resume, named_by_user=False) == taken
