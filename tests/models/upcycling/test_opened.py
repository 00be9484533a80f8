"""What is opened is one whole dense model in numbers; adapters beside it and quantised ones are refused."""

import json
from pathlib import Path

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.models.upcycling.opened import open_model, weight_files
from tests.models.upcycling.conftest import MakeDense


def test_nothing_is_read_before_it_is_needed(dense: MakeDense) -> None:
    opened = open_model(str(dense("llama", shard="20KB")))
    assert (opened.model_type, opened.config["vocab_size"]) == ("llama", 67)
    value = opened.slices["model.embed_tokens.weight"]
    assert value.get_shape() == [67, 36]
    assert Path(opened.weights_file).parent == opened.folder
    assert len(weight_files(opened.folder)) > 2


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("adapter_config.json", {"peft_type": "LORA"}, "holds an adapter .* beside a dense model; merge it first"),
        ("config.json", {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ("config.json", [], "holds a list, not a JSON object"),
    ],
)
def test_what_is_no_dense_model_is_refused(dense: MakeDense, name: str, content: object, text: str) -> None:
    folder = dense("llama")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=text):
        open_model(str(folder))


def test_missing_files_are_named(dense: MakeDense) -> None:
    folder = dense("llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors; found config.json"):
        open_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_model(str(folder))


def test_a_broken_gguf_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    for name in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(CheckpointError, match=r"model\.gguf can't be read as GGUF"):
            open_model(str(name))
