"""The model, the console and the files of a chat are those that the command line names."""

import json

import pytest

from moe_hf.cli.chat import main
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.inference.transcript import read_transcript
from tests.serving.threads import running, served

SHORT = ["--max_new_tokens", "5", "--device", "cpu", "--seed", "1"]


def test_the_newest_run_is_taken_and_the_architecture_restricts_it(model_folder, capsys, stdin):
    runs = ["--runs_dir", str(model_folder.parent), "-p", "hi", "--json", *SHORT]
    assert main(["--architecture", "moe", *runs]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(model_folder)
    assert main(["--architecture", "dense", *runs]) == 2
    assert "python train.py --architecture dense" in capsys.readouterr().err


def test_transcript_and_load_carry_a_conversation_over(model_folder, capsys, stdin, tmp_path):
    path = tmp_path / "t.jsonl"
    assert main(["--model", str(model_folder), "-p", "hi", "--transcript", str(path), "--system", "s", *SHORT]) == 0
    assert [message["role"] for message in read_transcript(path)[0]] == ["system", "user", "assistant"]
    capsys.readouterr()
    assert main(["--model", str(model_folder), "-p", "more", "--load", str(path), "--json", *SHORT]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] > len("s hi more")


def test_plain_chats_over_a_pipe_with_commands(model_folder, capsys, stdin):
    stdin('hi\n/undo\n"""two\nlines"""\n/experts on\n/nonsense\nlast\n/exit\nnever\n')
    assert main(["--model", str(model_folder), "--plain", *SHORT]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("[5 tokens") == 3
    for remark in ("dropped: hi", "experts on", "error: unknown command /nonsense", "layer  0 "):
        assert remark in shown.err
        assert remark not in shown.out


def test_experts_of_a_one_shot_answer_go_to_stderr(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", "--experts", *SHORT]) == 0
    shown = capsys.readouterr()
    assert "layer  0 " in shown.err
    assert "layer  0 " not in shown.out


@pytest.fixture(scope="module")
def url(model_folder):
    with running(served(CausalTextModel.load(str(model_folder), device="cpu"))) as url:
        yield url


def test_a_model_behind_a_url_answers_once_and_over_a_pipe(url, model_folder, capsys, stdin):
    answer = ["--max_new_tokens", "5", "--do_sample", "false"]
    assert main(["--model", str(model_folder), "--device", "cpu", "-p", "hi", *answer]) == 0
    here = capsys.readouterr().out
    assert main(["--url", url, "-p", "hi", *answer]) == 0
    assert capsys.readouterr().out == here
    stdin("hi\n/experts\n/stats\n/exit\n")
    assert main(["--url", url, "--plain", *answer]) == 0
    shown = capsys.readouterr()
    assert here.strip() in shown.out
    for remark in (f"{url}. /help lists commands", "answers come without their experts", "[5 tokens"):
        assert remark in shown.err


def test_flags_of_a_model_here_are_refused_with_a_url_and_a_server_that_is_not_there_is_one_line(url, capsys, stdin):
    assert main(["--url", url, "--dtype", "float32", "-p", "hi"]) == 2
    assert "--dtype is for a model that runs here" in capsys.readouterr().err
    assert main(["--url", "http://127.0.0.1:9/v1", "-p", "hi"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
