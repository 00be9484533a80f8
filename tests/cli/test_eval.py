"""`moe-hf eval` scores models on files, and says which of two is better."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from moe_hf.__main__ import main


@pytest.fixture
def texts(tmp_path):
    rows = [{"text": f"line {i} of a text", "domain": "even" if i % 2 == 0 else "odd"} for i in range(8)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_table_by_domain(model_folder, texts, capsys) -> None:
    assert main(["eval", str(model_folder), "--data", str(texts)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["domain", "even", "odd", "all"]
    assert all(len(line) <= 80 for line in lines)


def test_json_and_a_paired_comparison(model_folder, texts, tmp_path, capsys) -> None:
    other = tmp_path / "other"
    assert main(["upcycle", str(model_folder), str(other), "--num_experts", "16", "--expert_init", "noise"]) == 0
    capsys.readouterr()
    words = ["eval", str(model_folder), "--compare", str(other), "--data", str(texts), "--context_length", "16"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["domain"], row["documents"]) for row in report["scores"][::2]] == [("even", 4), ("odd", 4), (None, 8)]
    values = [row["bits_per_byte"]["value"] for row in report["scores"][-2:]]
    assert report["difference"]["value"] == pytest.approx(values[0] - values[1])
    assert main(words) == 0
    assert f"A = {model_folder}, B = {other}; " in capsys.readouterr().out


def test_what_hides_text_or_cannot_be_rendered_is_said(model_folder, tmp_path, capsys) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template is None
    letter = tokenizer.convert_tokens_to_ids("a")
    tokenizer.unk_token = "a"
    assert tokenizer.unk_token_id == letter
    tokenizer.save_pretrained(folder)
    (tmp_path / "text.txt").write_text("banana")
    assert main(["eval", str(folder), "--data", str(tmp_path / "text.txt")]) == 0
    said = capsys.readouterr().err
    assert "3 tokens stand for text that the tokenizer does not know" in " ".join(said.split())
    assert "one document has no interval" in said
    assert main(["eval", str(folder), "--data", "embedded", "--limit", "2"]) == 2
    assert "--data embedded holds conversations but the tokenizer has no chat template" in capsys.readouterr().err


def test_what_is_empty_broken_or_long_is_no_number(model_folder, tmp_path, capsys) -> None:
    lines = [{"text": "one text"}, {"text": ""}, {"text": "another", "domain": "d" * 60}]
    (tmp_path / f"{'n' * 50}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    folder = tmp_path / "o[/x]"
    shutil.copytree(model_folder, folder)
    words = ["eval", str(folder), "--data", str(tmp_path / f"{'n' * 50}.jsonl")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "1 documents without text that counts are left out" in " ".join(said.err.split())
    assert [line.split()[1] for line in said.out.splitlines()] == ["docs", "1", "1", "2"]
    assert all(len(line) <= 80 and line.count("…") <= 1 for line in said.out.splitlines())
    weights = load_file(folder / "model.safetensors")
    broken = {name: value * float("nan") for name, value in weights.items()}
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(words) != 0
    assert "a cross-entropy of nan; its weights are broken" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--limit", "0"], "--limit=0 is not allowed; it must be 1 to 1000000000"),
        (["--context_length", "1"], "--context_length=1 is not allowed; it must be 2 to 1000000000"),
        (["--context_length", "5000"], "context_length=5000 is not allowed; it must be 2 to 4096"),
        (["--limit", "99999999999999999999"], "--limit=99999999999999999999 is not allowed"),
        (["--compare", "./nosuch"], "there is no folder ./nosuch"),
        (["--compare", "SAME"], "is the same model; name another"),
    ],
)
def test_what_cannot_be_is_one_line(model_folder, texts, capsys, words: list[str], text: str) -> None:
    words = [str(model_folder) if word == "SAME" else word for word in words]
    assert main(["eval", str(model_folder), "--data", str(texts), *words]) == 2
    assert text in capsys.readouterr().err
