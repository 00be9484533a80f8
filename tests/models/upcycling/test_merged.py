"""A Mixture of Experts becomes dense by the mean of its experts: the dense model again where they are equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS
from tests.models.families import tiny_family
from tests.models.native_moes import NATIVE_MOES
from tests.models.upcycling.conftest import MakeDense, difference, logits, save_dense


def merged(source: Path, **choices: Any) -> Path:
    return upcycle_directory(str(source), source.parent / "merged", target="dense", **choices).folder


@pytest.mark.parametrize("kind", [kind for kind, native in NATIVE_FORMATS.items() if not native.shares])
def test_what_was_upcycled_comes_back(dense: MakeDense, kind: str) -> None:
    source = dense(kind)
    moe = upcycle_directory(str(source), source.parent / "moe", num_experts=4).folder
    folder = merged(moe)
    assert AutoConfig.from_pretrained(folder).model_type == kind
    before, after = (load_file(path / "model.safetensors") for path in (source, folder))
    assert before.keys() == after.keys()
    assert all(after[name].equal(value) for name, value in before.items())
    assert difference(logits(folder), logits(source)) <= 1e-6
    assert "A dense model merged from the Mixture of Experts `moe`" in (folder / "README.md").read_text()


@pytest.mark.parametrize("gated", [False, True])
def test_a_model_of_this_package_becomes_its_own_twin(tmp_path: Path, gated: bool) -> None:
    if gated:
        model = tiny_family("retnet")
    else:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "dense")
        upcycle_directory(str(tmp_path / "dense"), tmp_path / "moe", num_experts=4)
    if gated:
        model.save_pretrained(tmp_path / "moe")
    folder = merged(tmp_path / "moe")
    assert AutoConfig.from_pretrained(folder).sparse_layers == []
    assert torch.isfinite(logits(folder)).all()
    if gated:
        moe, dense = (load_file(path / "model.safetensors") for path in (tmp_path / "moe", folder))
        layer = model.config.sparse_layers[0]
        stack = moe[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        up = dense[f"model.layers.{layer}.mlp.up_proj.weight"]
        torch.testing.assert_close(up, stack[:, stack.shape[1] // 2 :].mean(dim=0))
    else:
        assert difference(logits(folder), logits(tmp_path / "dense")) <= 1e-5


def test_the_mean_is_one(tmp_path: Path) -> None:
    source = save_dense(NATIVE_MOES["mixtral"](), tmp_path / "moe")
    folder = merged(source)
    moe, dense = (load_file(path / "model.safetensors") for path in (source, folder))
    experts = [moe[f"model.layers.1.block_sparse_moe.experts.{i}.w2.weight"] for i in range(4)]
    torch.testing.assert_close(dense["model.layers.1.mlp.down_proj.weight"], torch.stack(experts).mean(dim=0))
    assert "replaced by their mean" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "fields", "choices", "error", "text"),
    [
        ("mixtral", {}, {"num_experts": 4}, ConfigError, "num_experts=4 has no meaning for a dense model"),
        ("mixtral", {}, {"granularity": 2}, ConfigError, "granularity=2 has no meaning"),
        ("qwen2_moe", {}, {}, CheckpointError, "holds a qwen2_moe; only safetensors of .* can be merged"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, {}, CheckpointError, "dense layers of another width than its experts"),
    ],
)
def test_what_cannot_be_merged_is_refused(tmp_path: Path, kind, fields, choices, error, text) -> None:
    source = save_dense(NATIVE_MOES[kind](**fields), tmp_path / "moe")
    with pytest.raises(error, match=text):
        merged(source, **choices)
    assert not (tmp_path / "merged").exists()


def test_a_shared_expert_is_refused(tmp_path: Path) -> None:
    tiny_family("gpt2", shared_expert_intermediate_size=8).save_pretrained(tmp_path / "moe")
    with pytest.raises(CheckpointError, match="has shared experts beside the others"):
        merged(tmp_path / "moe")
