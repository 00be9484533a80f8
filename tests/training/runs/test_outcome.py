"""What stands when training has ended is whole, however it ended."""

import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_hf import CheckpointError
from moe_hf.__main__ import main
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


def test_a_run_is_pushed_as_it_goes_and_its_end_has_the_card_of_the_run(hub, go):
    recorder = Recorder()
    # A token that is given is no part of what is shared.
    report = go(f"--push_to_hub --hub_model_id me/tiny --hub_always_push --hub_token {hub.token}", recorder)
    commits = [commit.message for commit in hub.repos["me/tiny"].commits.values()][1:]
    assert commits == [*(f"Training in progress, step {step}" for step in (2, 4, 6)), "Trained with moe_hf"]
    shared = {path.name for path in report.model_dir.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert hub.names("me/tiny") == shared
    card = hub.content("me/tiny", "README.md").decode()
    assert 'from_pretrained("me/tiny")' in card
    assert "![expert utilization](expert_utilization.png)" in card
    assert f"| held-out loss | {report.eval_loss:.4f} nats" in card
    assert recorder.events[-1] is report
    assert recorder.notices[-1].startswith(f"pushed: {hub.url}/me/tiny/commit/")
    assert not any(hub.token.encode() in content for content in hub.blobs.values())
    model = AutoModelForCausalLM.from_pretrained("me/tiny")
    assert AutoTokenizer.from_pretrained("me/tiny").chat_template is not None
    assert model.generation_config.eos_token_id is not None


def test_a_run_whose_last_upload_fails_is_whole_and_says_how_to_go_on(hub, go, monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    recorder = Recorder()
    hub.on.append(("POST .*/commit/", hub.tokens.clear))
    with pytest.raises(
        CheckpointError, match=r"the model is whole in runs/tiny-moe, but not on the Hub: .*Then: moe-hf p"
    ):
        go("--push_to_hub --hub_model_id me/tiny --hub_strategy end", recorder)
    assert recorder.events[-1].finished
    assert (Path("runs/tiny-moe") / "config.json").exists()
    assert "model.safetensors" not in hub.names("me/tiny")
    hub.tokens[os.environ["HF_TOKEN"]] = ("me", True)
    assert main(["push", "runs/tiny-moe", "me/tiny"]) == 0
    assert "model.safetensors" in hub.names("me/tiny")


def test_a_card_in_the_folder_of_a_run_that_somebody_wrote_stays(go):
    folder = Path("runs/tiny-moe")
    go("--max_steps 1", None)
    mine = (folder / "README.md").read_text(encoding="utf-8").replace("## Numbers", "## My numbers")
    assert "## My numbers" in mine
    (folder / "README.md").write_text(mine, encoding="utf-8")
    # What the end of a run does once more, when it was killed there.
    (folder / "config.json").unlink()
    go("--max_steps 1", None)
    assert (folder / "config.json").exists()
    assert (folder / "README.md").read_text(encoding="utf-8") == mine
