"""What is shared is a whole model and nothing else: no pickle, no training state, no secret, nothing from elsewhere."""

import json
import os
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from moe_hf import CheckpointError
from moe_hf.sharing.shared_files import (
    INDEX,
    WEIGHTS,
    require_model_names,
    require_no_secrets,
    require_one_save,
    require_sound_files,
    shared_files,
)


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_pickles_checkpoints_state_and_hidden_files_stay(folder):
    before = set(shared_files(folder).files)
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", INDEX} <= before
    put(folder, "training_args.bin", "optimizer.pt", "rng_state_0.pth", "trainer_state.json", "manifest.json", "a.PKL")
    put(folder, "p.pth.tar", "m.Dill", "o.npy", "s.npz")
    put(
        folder,
        "checkpoint-3/model.safetensors",
        "tmp-checkpoint-4/a",
        "optimizer_0/a",
        ".lock",
        ".git/config",
        "s/b.pt",
    )
    put(folder, "model-00099-of-00099.safetensors", "sub/.hidden", "sub/kept.txt", "weights/model.bin.json")
    found = shared_files(folder)
    assert set(found.files) == before | {"sub/kept.txt", "weights/model.bin.json"}
    assert found.left_out == {
        **dict.fromkeys(
            ("training_args.bin", "a.PKL", "s/b.pt", "p.pth.tar", "m.Dill", "o.npy", "s.npz"),
            "a pickle, which can run code",
        ),
        **dict.fromkeys(("optimizer.pt", "rng_state_0.pth", "trainer_state.json", "manifest.json"), "training state"),
        **dict.fromkeys(("checkpoint-3/", "tmp-checkpoint-4/", "optimizer_0/"), "training state"),
        "model-00099-of-00099.safetensors": f"{INDEX} does not name it",
    }


def test_links_that_lead_out_are_refused_and_pipes_are_no_files(folder, tmp_path):
    os.mkfifo(folder / "pipe")
    (folder / "inside.json").symlink_to(folder / "config.json")
    assert "inside.json" in shared_files(folder).files
    assert "pipe" not in shared_files(folder).files
    put(tmp_path, "secret.txt", "elsewhere/a")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match=r"notes.txt is a link that leads out of"):
        shared_files(folder)
    (folder / "notes.txt").unlink()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="more is a link to a folder"):
        shared_files(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere"):
        shared_files(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a.txt"], "moe has no config.json; name that of a model"),
        (["adapter_config.json"], "moe has no config.json"),
        (["config.json"], "moe has no model.safetensors; load"),
        (["config.json", "pytorch_model.bin"], "but pickles (pytorch_model.bin), which can run code; load"),
    ],
)
def test_names_that_are_no_model_are_refused(names, text):
    with pytest.raises(CheckpointError, match=re.escape(text)):
        require_model_names("moe", names)


def test_weights_of_two_saves_are_refused(folder):
    put(folder, WEIGHTS)
    with pytest.raises(CheckpointError, match="holds both"):
        require_one_save(folder, shared_files(folder).files)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def other_tensor(path):
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({f"{name}.old": tensors.pop(name), **tensors}, path)


def index_of(change):
    def damage(path):
        index = json.loads((path.parent / INDEX).read_text())
        change(index["weight_map"], next(iter(index["weight_map"])))
        (path.parent / INDEX).write_text(json.dumps(index))

    return damage


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut, "can't be read as safetensors"),
        (lambda path: path.write_bytes(b""), "can't be read as safetensors"),
        (lambda path: path.write_bytes(b"\xff" * 64), "can't be read as safetensors"),
        (lambda path: path.unlink(), "model-00001-of-"),
        (other_tensor, "names 1 tensors that its files lack"),
        (index_of(lambda index, name: index.update({name: "../evil.safetensors"})), "leads out of its folder"),
        (index_of(lambda index, name: index.update({name: "pytorch_model.bin"})), "not a safetensors file"),
        (index_of(lambda index, name: index.update({name: 7})), "has no weight_map"),
        (lambda path: (path.parent / INDEX).write_text("{"), "not readable as JSON"),
        (lambda path: (path.parent / "config.json").write_text("[]"), "not a JSON object"),
        (lambda path: (path.parent / "tokenizer_config.json").write_text("["), "not readable as JSON"),
        (lambda path: cut(path.parent / "tokenizer.json"), "not readable as JSON"),
        (lambda path: (path.parent / "vocab.json").write_text('{"a": 1'), "not readable as JSON"),
        *(
            (index_of(lambda index, name, file=file: index.update({name: file})), f"names {file}, which is not by")
            for file in ("./config.safetensors", ".a.safetensors", "checkpoint-1/a.safetensors")
        ),
    ],
)
def test_damaged_files_are_refused(folder, damage, text):
    require_sound_files(folder, shared_files(folder).files)
    for name in ("config", ".a", "checkpoint-1/a"):
        put(folder, f"{name}.safetensors")
        shutil.copy(min(folder.glob("model-*.safetensors")), folder / f"{name}.safetensors")
    damage(min(folder.glob("model-*.safetensors")))
    with pytest.raises(CheckpointError, match=re.escape(text)):
        require_sound_files(folder, [path.name for path in folder.iterdir() if path.is_file() and path.name[0] != "."])


@pytest.mark.parametrize("chunks", [0, 2**20 - 10])
def test_a_token_is_found_wherever_it_lies_and_not_repeated(tmp_path, chunks):
    token = "hf_" + "Ab3" * 11 + "x"
    (tmp_path / "run.yaml").write_text(" " * chunks + f"note: {token}\n")
    with pytest.raises(CheckpointError, match=r"run.yaml holds what looks like a token") as caught:
        require_no_secrets([tmp_path / "run.yaml"])
    assert token not in str(caught.value)
    (tmp_path / "run.yaml").write_text("a: hf_short\nb: xhf_" + "A" * 40)
    require_no_secrets([tmp_path / "run.yaml"])
    with pytest.raises(CheckpointError):
        require_no_secrets([tmp_path / "run.yaml"], token="hf_short")


@pytest.mark.parametrize(
    "name", ["notes.ipynb", "a.csv", "a.rst", "a.env", "a.html", "run.bak", "a.TXT", "LICENSE", "tool.gguf"]
)
def test_a_token_is_found_in_files_of_any_other_kind(tmp_path, name):
    (tmp_path / name).write_text('{"source": ["token:\\nhf_' + "Ab3" * 11 + 'x_old"]}')
    with pytest.raises(CheckpointError, match=rf"{name} holds what looks like a token"):
        require_no_secrets([tmp_path / name])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("token", ["hf_" + "Ab3" * 11 + "x", "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJz-dW_I.x", "my own one"])
def test_every_kind_of_token_is_found_in_either_encoding(tmp_path, token, encoding):
    (tmp_path / "a.txt").write_bytes(f"a: {token}\n".encode(encoding))
    with pytest.raises(CheckpointError, match=r"a.txt holds what looks like a token"):
        require_no_secrets([tmp_path / "a.txt"], token="my own one")


def test_numbers_are_not_searched(tmp_path):
    (tmp_path / "a.safetensors").write_text("hf_" + "A" * 34)
    require_no_secrets([tmp_path / "a.safetensors"])
