"""The model, the console and the files of a chat are those that the command line names."""

import json

from moe_hf.cli.chat import main
from moe_hf.inference.transcript import read_transcript

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
