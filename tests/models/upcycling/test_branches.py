"""Several fine-tunes of one model become one Mixture of Experts: an expert each, and the mean of all else."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from tests.models.upcycling.conftest import CONFIGS, difference, logits, save_dense


def fine_tune(source: Path, folder: Path, seed: int) -> Path:
    """The same model with other numbers."""
    save_dense(CONFIGS["llama"](), folder)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(source / "model.safetensors")
    moved = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def branches(tmp_path: Path) -> list[Path]:
    first = save_dense(CONFIGS["llama"](), tmp_path / "a")
    return [first, fine_tune(first, tmp_path / "b", 1), fine_tune(first, tmp_path / "c", 2)]


def mixed(branches: list[Path], **choices) -> dict[str, torch.Tensor]:
    source, *others = map(str, branches)
    folder = upcycle_directory(source, branches[0].parent / "moe", branches=others, **choices).folder
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("per_branch", [1, 2])
def test_each_gives_its_own_experts_and_the_rest_is_the_mean(branches: list[Path], per_branch: int) -> None:
    states = [load_file(folder / "model.safetensors") for folder in branches]
    moe = mixed(branches, **({} if per_branch == 1 else {"num_experts": 3 * per_branch}))
    for i in range(3 * per_branch):
        for ours, theirs in {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.items():
            expert = moe[f"model.layers.1.block_sparse_moe.experts.{i}.{ours}.weight"]
            assert expert.equal(states[i % 3][f"model.layers.1.mlp.{theirs}.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(moe[name], torch.stack([state[name] for state in states]).mean(dim=0))
    card = (branches[0].parent / "moe" / "README.md").read_text()
    assert "made of 3 models, the mean of which computes what none of them did" in card


def test_branches_that_are_equal_compute_what_each_did(branches: list[Path]) -> None:
    mixed([branches[1]] * 2, num_experts=4)
    assert difference(logits(branches[0].parent / "moe"), logits(branches[1])) <= 1e-5


def test_slices_of_one_branch_stay_together(branches: list[Path]) -> None:
    states = [load_file(folder / "model.safetensors") for folder in branches[:2]]
    moe = mixed(branches[:2], granularity=2, num_experts_per_tok=2)
    for i in range(4):
        rows = slice(i % 2 * 30, i % 2 * 30 + 30)
        dense = states[i // 2]["model.layers.0.mlp.up_proj.weight"][rows]
        assert moe[f"model.layers.0.block_sparse_moe.experts.{i}.w3.weight"].equal(dense)


@pytest.mark.parametrize("kind", ["granite", "gpt2"])
def test_stacks_are_made_of_all(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        if kind == "granite":
            save_dense(CONFIGS["granite"](), folder)
        else:
            GPT2LMHeadModel(GPT2Config(vocab_size=67, n_embd=36, n_layer=2, n_head=2)).save_pretrained(folder)
        state = load_file(folder / "model.safetensors")
        save_file({k: v + seed for k, v in state.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    moe = mixed(folders, num_experts=4)
    stack = (
        "model.layers.0.block_sparse_moe.output_linear.weight"
        if kind == "granite"
        else ("model.layers.0.mlp.experts.down_proj")
    )
    torch.testing.assert_close(moe[stack][1], moe[stack][3])
    if kind == "granite":
        torch.testing.assert_close(moe[stack][0] + 1, moe[stack][1])
    else:
        assert not moe[stack][0].equal(moe[stack][1])


def test_what_is_no_fine_tune_of_the_same_model_is_refused(branches: list[Path], tmp_path: Path) -> None:
    other = save_dense(CONFIGS["llama"](rope_parameters={"rope_type": "default", "rope_theta": 5.0}), tmp_path / "d")
    with pytest.raises(CheckpointError, match=r"d has rope_parameters=.* where .*a has .*fine-tunes of one model"):
        mixed([branches[0], other])
    other = save_dense(CONFIGS["qwen3"](), tmp_path / "e")
    with pytest.raises(CheckpointError, match=r"where .*a has"):
        mixed([branches[0], other])


def test_branches_give_equally_many_experts(branches: list[Path]) -> None:
    with pytest.raises(ConfigError, match="num_experts=4 is not allowed with 3 branches; it must be a multiple of 3"):
        mixed(branches, num_experts=4)


def test_ends_of_text_may_differ_as_those_of_a_chat_model_do(branches: list[Path]) -> None:
    path = branches[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 5, "attention_dropout": 0.1}))
    assert mixed(branches[:2])["model.norm.weight"].shape == (36,)
