"""Families of this package start from dense models through the same door, cut into slices or whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from tests.models.upcycling.conftest import MakeDense, difference, logits


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=36, n_layer=3, n_head=2, n_positions=64))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("router", ["top_k", "sigmoid_bias"])
def test_slices_of_ffns_are_chosen_together(gpt2: Path, router: str) -> None:
    choices = {"num_experts": 12, "num_experts_per_tok": 6, "router_type": router}
    report = upcycle_directory(str(gpt2), gpt2.parent / "moe", granularity=3, **choices)
    assert difference(logits(report.folder), logits(gpt2)) <= 1e-5
    assert AutoConfig.from_pretrained(report.folder).moe_intermediate_size == 48
    gate = load_file(report.folder / "model.safetensors")["model.layers.0.mlp.gate.weight"]
    assert gate[0].equal(gate[2])
    assert not gate[2].equal(gate[3])


@pytest.mark.parametrize(
    ("choices", "error", "text"),
    [
        ({"granularity": 3}, ConfigError, "granularity=3 .* divides num_experts=4"),
        (
            {"granularity": 2, "router_type": "hash"},
            CheckpointError,
            "moe_intermediate_size=72",
        ),
    ],
)
def test_slices_that_would_not_be_chosen_together_are_refused(
    gpt2: Path, choices: dict, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        upcycle_directory(str(gpt2), gpt2.parent / "moe", **{"num_experts": 4, **choices})


def test_counts_are_those_of_the_model(gpt2: Path) -> None:
    report = upcycle_directory(str(gpt2), gpt2.parent / "moe", num_experts=4)
    stored = load_file(report.folder / "model.safetensors")
    assert report.counts.total == sum(value.numel() for value in stored.values())
    assert report.counts.source == sum(value.numel() for value in GPT2LMHeadModel.from_pretrained(gpt2).parameters())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "granite", "olmo2"])
def test_dense_models_with_a_class_of_others_become_this_package_s_where_it_is_asked_for(
    dense: MakeDense, tmp_path: Path, kind: str
) -> None:
    source = dense(kind)
    native = upcycle_directory(str(source), tmp_path / "native", num_experts=2)
    assert native.config.model_type in ("mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "flex_olmo")
    own = upcycle_directory(str(source), tmp_path / "own", target="moe_hf", num_experts=4, router_num_hash_layers=1)
    assert own.config.model_type == "llama_moe"
    assert difference(logits(own.folder), logits(source)) <= 1e-5
    sliced = upcycle_directory(
        str(source), tmp_path / "sliced", target="moe_hf", num_experts=6, num_experts_per_tok=3, granularity=3
    )
    assert difference(logits(sliced.folder), logits(source)) <= 1e-5


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=53, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="type 'gpt_neox'; families of this package start from dense gpt2, llama"):
        upcycle_directory(str(tmp_path / "dense"), tmp_path / "moe", target="moe_hf")


def test_a_family_without_ffns_gets_fresh_ones(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=53, hidden_size=32, num_hidden_layers=2, state_size=5)
    MambaForCausalLM(config).save_pretrained(tmp_path / "dense")
    report = upcycle_directory(str(tmp_path / "dense"), tmp_path / "moe", num_experts=2, expert_init="noise")
    assert difference(logits(report.folder), logits(tmp_path / "dense")) <= 1e-5
    assert "It gives the source's logits" in (report.folder / "README.md").read_text()
