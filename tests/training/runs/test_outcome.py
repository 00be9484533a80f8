"""What stands when training has ended is whole, however it ended."""

import os
import shutil
from pathlib import Path

import pytest

from moe_hf.training.runs import outcome, run
from moe_hf.training.runs.listeners import RunListener
from tests.training.runs.tiny_runs import Recorder, log_lines, same_weights


class Killed(BaseException):
    """Ends a call as a kill would: nothing in the package catches it."""


def kill_after(monkeypatch, number):
    """Die when the `number`-th rename, or removal of a folder, since the run's last step is done."""
    calls = []

    def mortal(real):
        def call(*args, **kwargs):
            answer = real(*args, **kwargs)
            calls.append(args)
            if len(calls) == number:
                raise Killed
            return answer

        return call

    class Trained(RunListener):
        def trained(self):
            monkeypatch.setattr(os, "replace", mortal(os.replace))
            monkeypatch.setattr(shutil, "rmtree", mortal(shutil.rmtree))

    return Trained()


@pytest.mark.slow
def test_a_run_killed_anywhere_in_its_end_is_ended_by_the_same_command(finished, go, monkeypatch):
    # One folder, killed again and again: each call finds what the kill before has left.
    kills = 0
    while not Path("runs/tiny-moe/config.json").exists():
        kills += 1
        with monkeypatch.context() as patch, pytest.raises(Killed):
            go("--output_dir runs/tiny-moe", kill_after(patch, kills))
    assert kills > 9
    files = {path.name for path in finished[0].model_dir.iterdir()}
    # Killed before the last removal, which is that of an empty folder.
    assert {path.name for path in Path("runs/tiny-moe").iterdir()} == files | {"tmp-model"}
    assert same_weights("runs/tiny-moe", finished[0].model_dir)
    assert log_lines("runs/tiny-moe") == log_lines(finished[0].model_dir)


@pytest.mark.parametrize("moment", ["_finalize_training", "evaluate", "final_model", "write_report"])
def test_a_run_killed_after_its_last_step_is_ended_and_not_trained_further(finished, go, monkeypatch, moment):
    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run if hasattr(run, moment) else run.MoETrainer, moment, killed)
        with pytest.raises(Killed):
            go("--output_dir runs/tiny-moe")
    recorder = Recorder()
    report = go("--output_dir runs/tiny-moe", recorder)
    assert recorder.steps == []
    assert (report.steps, report.timed_steps, report.train_loss) == (6, 6, finished[0].train_loss)
    assert report.tokens_per_second > 0
    assert same_weights(report.model_dir, finished[0].model_dir)
    assert log_lines(report.model_dir) == log_lines(finished[0].model_dir)
    assert {path.name for path in report.model_dir.iterdir()} == {path.name for path in finished[0].model_dir.iterdir()}


def test_the_scoreboard_asks_the_held_out_questions_of_every_skill(go, monkeypatch):
    monkeypatch.setattr(outcome, "ANSWER_TOKENS", 2)
    report = go("--questions_per_skill 1 --max_steps 1")
    assert len(report.scoreboard.scores) > 10
    assert "## Held-out questions" in (report.model_dir / "README.md").read_text(encoding="utf-8")
