"""A Mixture of Experts gets more experts and computes the same, while a token visits all copies of what it visited."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.models.upcycling.grown import GROWING
from tests.models.families import tiny_family
from tests.models.native_moes import NATIVE_MOES
from tests.models.upcycling.conftest import difference, logits, save_dense

NATIVE = sorted(GROWING & NATIVE_MOES.keys())


def native(kind: str, folder: Path, **fields: Any) -> Path:
    return save_dense(NATIVE_MOES[kind](**fields), folder / "moe")


def grown(source: Path, **choices: Any) -> Path:
    return upcycle_directory(str(source), source.parent / "grown", **choices).folder


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("copies", [2, 3])
def test_transformers_own_compute_the_same(tmp_path: Path, kind: str, copies: int) -> None:
    source = native(kind, tmp_path)
    folder = grown(source, num_experts=4 * copies)
    assert difference(logits(folder), logits(source)) <= 1e-5
    config = AutoConfig.from_pretrained(folder)
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    assert (experts, config.num_experts_per_tok) == (4 * copies, 2 * copies)
    assert "A Mixture of Experts grown from the Mixture of Experts `moe`" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["gpt2", "mamba2", "retnet", "rwkv4"])
@pytest.mark.parametrize("router", ["top_k", "sigmoid_bias"])
def test_those_of_this_package_compute_the_same(tmp_path: Path, kind: str, router: str) -> None:
    model = tiny_family(kind, router_type=router)
    model.save_pretrained(tmp_path / "moe")
    folder = grown(tmp_path / "moe", num_experts=2 * model.config.num_experts)
    assert difference(logits(folder), logits(tmp_path / "moe")) <= 1e-5
    assert "import moe_hf" in (folder / "README.md").read_text()


def test_copies_may_start_apart(tmp_path: Path) -> None:
    source = native("mixtral", tmp_path)
    folder = grown(source, expert_init="noise", expert_init_noise=0.05)
    state = load_file(folder / "model.safetensors")
    first, second = (state[f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight"] for i in (0, 1))
    assert not first.equal(second)
    assert 1e-4 < difference(logits(folder), logits(source)) < 0.5


def test_fewer_visits_than_copies_change_the_function_and_the_card_says_so(tmp_path: Path) -> None:
    source = native("mixtral", tmp_path)
    folder = grown(source, num_experts_per_tok=2)
    assert difference(logits(folder), logits(source)) > 1e-3
    assert "a token visits 2 experts; 4 keep the function" in (folder / "README.md").read_text()


def test_counts_are_those_of_both_models(tmp_path: Path) -> None:
    source = native("qwen3_moe", tmp_path)
    report = upcycle_directory(str(source), tmp_path / "grown")
    assert report.counts.source == sum(x.numel() for x in load_file(source / "model.safetensors").values())
    stored = load_file(report.folder / "model.safetensors")
    assert report.counts.total == sum(x.numel() for x in stored.values())
    experts = sum(x.numel() for name, x in stored.items() if ".experts." in name)
    assert report.counts.active == report.counts.total - experts // 2
    gate = stored["model.layers.0.mlp.gate.weight"]
    assert gate[0].equal(gate[1])
    assert gate.shape == torch.Size([8, 32])


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"num_experts": 6}, "num_experts=6 is not allowed for .*, which has 4; it must be a multiple"),
        ({"num_experts": 4}, "num_experts=4"),
        ({"granularity": 2}, "granularity=2"),
        ({"expert_init": "drop"}, "expert_init='drop' is not allowed here; it must be copy or noise"),
        ({"router_type": "hash"}, "router_type='hash' has no meaning for a model that is grown"),
        ({"target": "native"}, "target='native' is not allowed: .* is a mixtral already, and stays one"),
    ],
)
def test_wrong_choices(tmp_path: Path, choices: dict[str, Any], text: str) -> None:
    source = native("mixtral", tmp_path)
    with pytest.raises(ConfigError, match=text):
        grown(source, **choices)
    assert not (tmp_path / "grown").exists()


def test_a_router_whose_copies_would_not_share_a_weight_is_refused(tmp_path: Path) -> None:
    tiny_family("gpt2", router_type="switch", num_experts_per_tok=1).save_pretrained(tmp_path / "moe")
    with pytest.raises(CheckpointError, match=r"routes by switch, .* only sigmoid_bias, top_k can be grown"):
        grown(tmp_path / "moe")
