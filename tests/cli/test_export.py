"""`moe-hf export` writes a file or a folder, says what is in it, and says in a line what is wrong."""

from pathlib import Path

import pytest

from moe_hf.__main__ import main
from tests.models.families import tiny_family
from tests.models.native_moes import native_moe

pytest.importorskip("gguf", reason="gguf is in the gguf extra")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    native_moe("mixtral").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_export_writes_a_file_and_tells_of_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["export", str(folder), "--gguf", str(tmp_path / "out.gguf"), "--quantize", "q8_0"]
    assert main(words) == 0
    said = capsys.readouterr().out
    kilobytes = (tmp_path / "out.gguf").stat().st_size / 1e3
    assert f"{tmp_path / 'out.gguf'}: 0.0M parameters, {kilobytes:.1f} kB, for llama.cpp's llama" in said
    assert "tensors:   2 f16, 7 f32, 14 q8_0" in said
    assert "not q8_0:  2 whose rows are no multiple of 32, in f16: blk.0.ffn_down_exps.weight, blk.1" in said
    assert f"notice:    {folder} has no tokenizer" in said
    assert "run it" not in said
    assert main(words) == 2
    assert "out.gguf already exists; choose another file or overwrite it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("source", "file", "text"),
    [
        ("./nowhere", "out.gguf", "moe-hf export: there is no folder ./nowhere; name a model folder or a Hub id"),
        ("model", "nowhere/out.gguf", "moe-hf export: there is no folder nowhere for out.gguf; create it first"),
        ("jamba", "out.gguf", "moe-hf export: jamba holds a model of type 'jamba', which can't be exported to GGUF: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    source: str,
    file: str,
    text: str,
    folder: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "jamba").mkdir()
    (folder.parent / "jamba" / "config.json").write_text('{"model_type": "jamba"}')
    (folder.parent / "jamba" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert main(["export", source, "--gguf", file]) == 2
    said = capsys.readouterr().err
    assert said.startswith(text)
    assert said.count("\n") == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == ["jamba", "model"]


def test_export_writes_a_folder_with_the_code_and_tells_of_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_family("gpt2", router_type="sigmoid_bias").save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().out
    files = len([*(tmp_path / "out").glob("*.py")])
    assert f"{tmp_path / 'out'}: gpt2_moe, " in said
    assert f"modeling_gpt2_moe.py and {files - 1} files that it imports" in said
    assert "carried over: generation_config.json" in said
    assert "leaves the states of its sigmoid_bias routers where they are" in said
    assert f"from_pretrained('{tmp_path / 'out'}', trust_remote_code=True)" in said
    assert main(words) == 2
    assert "already exists and is not empty; choose another folder or overwrite it" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "name one of DIR and --gguf FILE"),
        (["out", "--gguf", "out.gguf"], "name one of DIR and --gguf FILE"),
        (["out", "--quantize", "f16"], "--quantize goes with --gguf"),
    ],
)
def test_a_folder_and_a_file_are_two_things(words: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["export", "model", *words])
    assert text in capsys.readouterr().err


def test_a_model_of_transformers_needs_no_code(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(["export", "model", "out"]) == 2
    assert "model is a mixtral, not one of gpt2_moe" in capsys.readouterr().err
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
