"""`upcycle_directory` writes a whole, loadable model folder or nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory

SHAPE = {"vocab_size": 61, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("dense")
    model.save_pretrained(folder)
    return folder


def _logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


@pytest.mark.parametrize("max_shard_size", ["5GB", "5KB"])
def test_folder_gives_the_dense_logits(dense_folder, tmp_path, max_shard_size):
    seen = []
    report = upcycle_directory(
        str(dense_folder),
        tmp_path / "moe",
        max_shard_size=max_shard_size,
        on_shard=lambda done, total: seen.append((done, total)),
        num_experts=4,
    )
    assert torch.allclose(_logits(tmp_path / "moe"), _logits(dense_folder), atol=1e-5)
    assert seen == [(i + 1, report.num_shards) for i in range(report.num_shards)]
    assert (report.num_shards > 1) == (max_shard_size == "5KB")
    assert set(report.carried) == {"generation_config.json"}
    assert (tmp_path / "moe" / "README.md").read_text(encoding="utf-8").startswith("---\n")
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


def test_a_tied_head_may_be_untied(dense_folder, tmp_path):
    upcycle_directory(str(dense_folder), tmp_path / "moe", num_experts=2, tie_word_embeddings=False)
    assert "lm_head.weight" in load_file(tmp_path / "moe" / "model.safetensors")
    assert torch.allclose(_logits(tmp_path / "moe"), _logits(dense_folder), atol=1e-5)


def test_written_weights_have_the_asked_type_and_size(dense_folder, tmp_path):
    report = upcycle_directory(str(dense_folder), tmp_path / "moe", dtype=torch.bfloat16, num_experts=2)
    tensors = load_file(tmp_path / "moe" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.nbytes for tensor in tensors.values()) == report.weight_bytes
    assert json.loads((tmp_path / "moe" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("router", "states"),
    [
        # Ids above 256 are not all whole numbers that bfloat16 holds.
        ({"router_type": "hash", "num_experts": 300}, {torch.int64}),
        ({"router_type": "sigmoid_bias", "num_experts": 3}, {torch.float32}),
        ({"router_type": "expert_choice", "num_experts": 3}, {torch.float32}),
        (
            {"router_type": "sigmoid_bias", "num_experts": 300, "router_num_hash_layers": 1},
            {torch.int64, torch.float32},
        ),
    ],
    ids=lambda value: None if isinstance(value, set) else str(value),
)
def test_states_of_routers_keep_their_type(dense_folder, tmp_path, router, states):
    report = upcycle_directory(
        str(dense_folder), tmp_path / "moe", dtype=torch.bfloat16, max_shard_size="200KB", **router
    )
    files = sorted((tmp_path / "moe").glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    held = {name: tensor for name, tensor in tensors.items() if name.endswith(("expert_of_id", "bias", "threshold"))}
    held = {name: tensor for name, tensor in held.items() if ".gate." in name}
    assert {tensor.dtype for tensor in held.values()} == states
    assert {tensor.dtype for name, tensor in tensors.items() if name not in held} == {torch.bfloat16}
    assert sum(tensor.nbytes for tensor in tensors.values()) == report.weight_bytes
    if len(files) > 1:
        index = json.loads((tmp_path / "moe" / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["metadata"]["total_size"] == report.weight_bytes
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    fresh = type(model)(report.config)
    assert {name for name, _ in fresh.named_buffers() if ".gate." in name} == set(held)
    for name, buffer in fresh.named_buffers():
        if name in held:
            assert model.get_buffer(name).equal(buffer)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({}, "It gives the source's logits"),
        ({"expert_init": "noise"}, 'expert_init="noise" changes the experts'),
        ({"router_type": "switch", "num_experts_per_tok": 1}, 'router_type="switch" weighs'),
    ],
    ids=str,
)
def test_the_card_says_whether_the_logits_are_kept(dense_folder, tmp_path, overrides, said):
    upcycle_directory(str(dense_folder), tmp_path / "moe", num_experts=3, **overrides)
    card = " ".join((tmp_path / "moe" / "README.md").read_text(encoding="utf-8").split())
    assert said in card
    assert ("It gives the source's logits" in card) == (not overrides)


def test_taken_destination_is_refused_and_untouched(dense_folder, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(CheckpointError, match="already exists"):
        upcycle_directory(str(dense_folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_overwrite_replaces_a_model_and_nothing_else(dense_folder, tmp_path):
    (tmp_path / "mine").touch()
    for destination, text in ((tmp_path, r"no config\.json"), (tmp_path / "mine", "mine is a file")):
        with pytest.raises(CheckpointError, match=text):
            upcycle_directory(str(dense_folder), destination, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    upcycle_directory(str(dense_folder), tmp_path, overwrite=True)
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "model.safetensors").is_file()


def _broken(dense_folder, folder, kind):
    folder.mkdir()
    (folder / "config.json").write_bytes((dense_folder / "config.json").read_bytes())
    weights = dense_folder / "model.safetensors"
    if kind == "truncated":
        (folder / "model.safetensors").write_bytes(weights.read_bytes()[:-100])
    elif kind == "missing tensor":
        tensors = load_file(weights)
        del tensors["transformer.h.1.mlp.c_fc.bias"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif kind == "pickled":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
    elif kind == "index leads outside":
        index = {"weight_map": {"wte.weight": "../dense/model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    elif kind == "not a GPT-2":
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "incomplete or damaged"),
        ("missing tensor", r"lacks 1 that are needed: h\.1\.mlp\.c_fc\.bias"),
        ("pickled", r"pytorch_model\.bin is not a safetensors file"),
        ("index leads outside", "leads out of its folder, to ../dense"),
        ("no weights", r"no model\.safetensors; found config\.json"),
        ("not a GPT-2", "not those of a dense GPT-2"),
    ],
)
def test_bad_source_is_named_and_nothing_is_written(dense_folder, tmp_path, kind, message):
    source = _broken(dense_folder, tmp_path / "source", kind)
    with pytest.raises(CheckpointError, match=message):
        upcycle_directory(str(source), tmp_path / "moe")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_bad_override_is_a_config_error_and_nothing_is_written(dense_folder, tmp_path):
    with pytest.raises(ConfigError, match="num_experts_per_tok=9"):
        upcycle_directory(str(dense_folder), tmp_path / "moe", num_experts_per_tok=9)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing(dense_folder, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle_directory(str(dense_folder), tmp_path / "moe", max_shard_size="5KB", on_shard=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        upcycle_directory(str(tmp_path / "nowhere"), tmp_path / "moe")


@pytest.mark.parametrize("above", [False, True])
def test_the_source_is_never_overwritten(dense_folder, tmp_path, above):
    source = tmp_path / "models" / "dense"
    shutil.copytree(dense_folder, source)
    with pytest.raises(CheckpointError, match=r"holds the source .* would be lost"):
        upcycle_directory(str(source), source.parent if above else source, overwrite=True)
    assert load_file(source / "model.safetensors").keys() == load_file(dense_folder / "model.safetensors").keys()


def test_weights_of_an_unknown_type_are_named(dense_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(dense_folder, source)
    tensors = load_file(source / "model.safetensors")
    save_file({name: tensor.to(torch.complex64) for name, tensor in tensors.items()}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="'C64'"):
        upcycle_directory(str(source), tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


def test_what_a_killed_run_left_is_gone_before_space_is_looked_for(dense_folder, tmp_path, monkeypatch):
    leftover = tmp_path / ".moe.partial-7"
    leftover.mkdir()
    (leftover / "model-00001-of-00009.safetensors").touch()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if leftover.exists() else usage.free))
    upcycle_directory(str(dense_folder), tmp_path / "moe")
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]


def test_what_came_while_it_was_written_stays(dense_folder, tmp_path):
    def come(done, total):
        (tmp_path / "moe").mkdir(exist_ok=True)
        (tmp_path / "moe" / "letter.txt").write_text("dear")

    with pytest.raises(CheckpointError, match="moe already exists"):
        upcycle_directory(str(dense_folder), tmp_path / "moe", on_shard=come)
    assert [path.name for path in (tmp_path / "moe").iterdir()] == ["letter.txt"]


def test_home_is_filled_in_and_the_card_names_no_folder(dense_folder, tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    shutil.copytree(dense_folder, tmp_path / "dense")
    upcycle_directory("~/dense", "~/moe", num_experts=3)
    card = (tmp_path / "moe" / "README.md").read_text(encoding="utf-8")
    assert "`dense`" in card
    assert "base_model" not in card
