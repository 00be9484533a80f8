import json

import pytest

from moe_hf.cli.chat import main

SHORT = ["--max_new_tokens", "5", "--device", "cpu", "--seed", "1"]


def test_one_shot_writes_only_the_answer_to_stdout(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", *SHORT, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(["--model", str(model_folder), "-p", "hi", *SHORT]) == 0
    shown = capsys.readouterr()
    assert len(text) == 5
    assert shown.out == text + "\n"
    assert "[5 tokens, " in shown.err
    assert "cut off at max_new_tokens" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", ""], "nothing to answer"),
        ([], "nothing to answer"),
        (["-p", "hi", "--temperature", "0"], "temperature must be"),
        (["-p", "x" * 5000], "context holds 4096"),
        (["-p", "hi", "--load", "none.jsonl"], "can't read the transcript none.jsonl"),
        (["-p", "hi", "--transcript", "no/such/folder/t.jsonl"], "can't write the transcript"),
        (["-p", "hi", "--model", "./nowhere"], "there is no folder ./nowhere"),
        (["-p", "hi", "--architecture", "dense"], "is of another kind"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_a_status_of_2(arguments, message, model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), *SHORT, *arguments]) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_folder_without_weights_is_one_line_too(tmp_path, capsys, stdin):
    (tmp_path / "config.json").write_text("{}")
    assert main(["--model", str(tmp_path), "-p", "hi"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
