"""`moe-hf export` writes a file, says what is in it, and says in a line what is wrong."""

from pathlib import Path

import pytest

from moe_hf.__main__ import main
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
