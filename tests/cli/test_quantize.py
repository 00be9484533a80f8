"""`moe-hf quantize` writes a folder that the other commands take, and says in a line what is wrong."""

import json

import pytest

from moe_hf.__main__ import main


def test_it_tells_what_it_wrote_and_the_folder_serves(model_folder, tmp_path, capsys, stdin) -> None:
    out = tmp_path / "int8"
    assert main(["quantize", str(model_folder), str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 0.0M parameters, 0.0M of them in 8 bits" in said
    assert "0.281 of float32" in said
    assert "tokenizer.json" in said
    assert f"talk to it:   moe-hf chat --model {out}" in said

    (tmp_path / "texts.txt").write_text("some text\n\nand more of it\n")
    words = ["eval", str(model_folder), "--compare", str(out), "--data", str(tmp_path / "texts.txt"), "--json"]
    assert main(words) == 0
    assert abs(json.loads(capsys.readouterr().out)["difference"]["value"]) < 0.01

    assert main(["info", str(out)]) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["experts_stored_in", "8", "bits"] in [row[:3] for row in rows]
    [weights] = [" ".join(row) for row in rows if row[:1] == ["weight_bytes"]]
    assert "if it were float32" in weights
    assert not [row for row in rows if row[:1] == ["train_state_bytes"]]

    assert main(["chat", "--model", str(out), "-p", "hello", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bits", "4"], "rows of 16 weights are no whole groups of group_size=32; use bits=8"),
        (["--group_size", "32"], "group_size=32 has no meaning with bits=8"),
        (["--bits", "5"], "invalid choice: 5"),
        (["--max_shard_size", "banana"], "max_shard_size='banana' is not allowed"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(model_folder, words, text, tmp_path, capsys) -> None:
    try:
        code = main(["quantize", str(model_folder), str(tmp_path / "out"), *words])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.strip().splitlines()[-1].startswith("moe-hf quantize: ")
    assert not (tmp_path / "out").exists()


def test_training_it_is_refused(model_folder, tmp_path, capsys) -> None:
    out = tmp_path / "int8"
    assert main(["quantize", str(model_folder), str(out)]) == 0
    (tmp_path / "texts.txt").write_text("some text\n" * 50)
    words = ["train", "--model", str(out), "--data", str(tmp_path / "texts.txt"), "--max_steps", "1"]
    assert main([*words, "--output_dir", str(tmp_path / "run")]) == 2
    assert "is quantised (moe_hf)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
