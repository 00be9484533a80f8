"""Files of a checkpoint are opened only where they stand in its folder and cannot run code; odd JSON is named."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from moe_hf import CheckpointError, GPT2WithMoE
from moe_hf.base.model_source import ModelSource
from moe_hf.models.auto import model_type_of
from moe_hf.models.dense.checkpoint_files import open_slices, require_inside


@pytest.mark.parametrize("source", ["dense", "ours"])
@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, r"leads out of its folder, to \.\./model.safetensors"),
        ({"weight_map": {"a": "/tmp/model.safetensors"}}, r"leads out of its folder, to /tmp/model.safetensors"),
        ({"weight_map": {"a": "one.bin"}}, r"one.bin is not a safetensors file; .* can run code"),
        ({"weight_map": {"a": "absent.safetensors"}}, "lists absent.safetensors, which .* lacks"),
        ({"weight_map": {"a": "one.safetensors"}}, 'has no "metadata"'),
        ({"weight_map": {"a": None}}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({}, "has no weight_map"),
        ([], "holds a list, not a JSON object"),
        ("{", "is not readable as JSON"),
        ("[" * 100_000, "is not readable as JSON"),
    ],
)
def test_an_odd_index(dense_folder, tiny_model, tmp_path, monkeypatch, source, index, text) -> None:
    folder = tmp_path / "model"
    if source == "dense":
        shutil.copytree(dense_folder, folder)
    else:
        tiny_model().save_pretrained(folder)
    for name in ("one.safetensors", "../model.safetensors", "one.bin"):
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
    for loader in (GPT2WithMoE, AutoModelForCausalLM) if source == "ours" else (GPT2WithMoE,):
        with pytest.raises(CheckpointError, match=text):
            loader.from_pretrained(folder)


@pytest.mark.parametrize("text", ["null", "3", "[" * 100_000])
def test_an_odd_configuration(dense_folder, tmp_path, text: str) -> None:
    copied = shutil.copytree(dense_folder, tmp_path / "copy")
    (copied / "config.json").write_text(text)
    for reader in (GPT2WithMoE.from_pretrained, lambda folder: model_type_of(ModelSource(str(folder)))):
        with pytest.raises(CheckpointError, match=r"config.json of .* (is no JSON object|can't be read)"):
            reader(copied)


@pytest.mark.parametrize(("name", "text"), [("../out.safetensors", "leads out of"), ("one.bin", "can run code")])
def test_an_odd_index_that_the_configuration_names(tiny_model, tmp_path, name: str, text: str) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    named = {"transformers_weights": "other.safetensors.index.json"}
    config.write_text(json.dumps(json.loads(config.read_text()) | named))
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "model" / name)
    index = {"metadata": {}, "weight_map": {"a": name}}
    (tmp_path / "model" / "other.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=text):
        GPT2WithMoE.from_pretrained(tmp_path / "model")


def test_only_whole_safetensors_files_are_opened(tmp_path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / "good.safetensors")
    assert list(open_slices([str(tmp_path / "good.safetensors")])) == ["a"]
    data = (tmp_path / "good.safetensors").read_bytes()
    for name, content in (("cut", data[:-8]), ("header", data[:5]), ("empty", b""), ("text", b"hello, world" * 9)):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.safetensors can't be read as safetensors"):
            open_slices([str(tmp_path / f"{name}.safetensors")])
    with pytest.raises(CheckpointError, match=r"can't be read as safetensors"):
        open_slices([str(tmp_path / "absent.safetensors")])
    with pytest.raises(CheckpointError, match=r"model.bin is not a safetensors file; pickled checkpoints can run code"):
        open_slices([str(tmp_path / "model.bin")])


def test_slices_outlive_the_call_that_opened_them(dense_folder) -> None:
    name = "transformer.wte.weight"
    value = open_slices([str(dense_folder / "model.safetensors")])[name][:]
    with safe_open(dense_folder / "model.safetensors", framework="pt") as file:
        assert value.equal(file.get_tensor(name))


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.safetensors", True),
        ("sub/a", True),
        ("sub/../a", False),
        ("../a", False),
        ("sub/../../a", False),
        ("/a", False),
    ],
)
def test_a_file_is_inside_its_folder_or_refused(tmp_path, name: str, inside: bool) -> None:
    if inside:
        require_inside(tmp_path, [name], "the index")
        return
    with pytest.raises(CheckpointError, match=f"the index leads out of its folder, to {name}; don't use this model"):
        require_inside(tmp_path, [name], "the index")
