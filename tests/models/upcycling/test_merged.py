"""A Mixture of Experts becomes dense by the mean of its experts, or by some: the same function if they are equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS
from tests.models.families import tiny_family
from tests.models.native_moes import NATIVE_MOES, native_moe
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


@pytest.mark.parametrize("kind", ["mixtral", "granitemoe", "qwen3_moe"])
def test_kept_experts_stand_side_by_side_and_give_their_mean(tmp_path: Path, kind: str) -> None:
    model = native_moe(kind)
    model.save_pretrained(tmp_path / "moe")
    stored = load_file(tmp_path / "moe" / "model.safetensors")
    folder = merged(tmp_path / "moe", kept_experts={0: [3, 0], 1: [1, 2]})
    dense = AutoModelForCausalLM.from_pretrained(folder)
    x = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def ffn_of(layer: int, expert: int) -> torch.Tensor:
        here = {name: value for name, value in stored.items() if f"layers.{layer}." in name}
        if kind == "granitemoe":
            both, down = (
                next(value[expert] for name, value in here.items() if f"{part}_linear" in name)
                for part in ("input", "output")
            )
            gate, up = both.chunk(2)
        else:
            own = [(name, value) for name, value in here.items() if f"experts.{expert}." in name]
            gate, up, down = (
                next(value for name, value in own if name.split(".")[-2] in words)
                for words in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
            )
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    for layer, kept in enumerate([[3, 0], [1, 2]]):
        expected = torch.stack([ffn_of(layer, expert) for expert in kept]).mean(dim=0)
        torch.testing.assert_close(dense.model.layers[layer].mlp(x), expected)
    assert "made of 2 of its layer's experts, side by side" in (folder / "README.md").read_text()


@pytest.mark.parametrize("shared", [0, 8])
@pytest.mark.parametrize("family", ["gpt2", "retnet", "rwkv7", "rwkv4"])
def test_two_of_equal_experts_compute_what_all_did(tmp_path: Path, family: str, shared: int) -> None:
    widths = {"intermediate_size": 24 + shared, "moe_intermediate_size": 12, "shared_expert_intermediate_size": shared}
    model = tiny_family(family, **({} if "rwkv" in family else {"mlp_bias": True}), norm_topk_prob=True, **widths)
    with torch.no_grad():
        for name, stack in model.named_parameters():
            if ".experts." in name:
                stack.copy_(stack[:1].expand_as(stack) + torch.randn(stack.shape[1:]) / 10)
    model.save_pretrained(tmp_path / "moe")
    sparse = model.config.sparse_layers
    folder = merged(tmp_path / "moe", kept_experts={layer: [2, 1] for layer in sparse})
    assert difference(logits(folder), logits(tmp_path / "moe")) <= 1e-5
    with pytest.raises(CheckpointError, match=f"dense layers of width {24 + shared}, .* FFNs of {12 + shared}"):
        upcycle_directory(
            str(tmp_path / "moe"), tmp_path / "one", target="dense", kept_experts={i: [0] for i in sparse}
        )


@pytest.mark.parametrize(
    "kept", [{}, {0: [1]}, {0: [1], 1: [0, 2]}, {0: [4], 1: [0]}, {0: [], 1: []}, {0: [1, 1], 1: [0, 2]}]
)
def test_experts_that_are_not_there_cannot_be_kept(tmp_path: Path, kept: dict[int, list[int]]) -> None:
    source = save_dense(NATIVE_MOES["mixtral"](), tmp_path / "moe")
    with pytest.raises(ConfigError, match="as many different experts in each of the layers 0, 1, of 0 to 3"):
        merged(source, kept_experts=kept)
    with pytest.raises(ConfigError, match=r"kept_experts=.* has no meaning with target=None"):
        upcycle_directory(str(source), tmp_path / "merged", kept_experts=kept)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("kind", "fields", "choices", "error", "text"),
    [
        ("mixtral", {}, {"num_experts": 4}, ConfigError, "num_experts=4 has no meaning for a dense model"),
        ("mixtral", {}, {"granularity": 2}, ConfigError, "granularity=2 has no meaning"),
        ("qwen2_moe", {}, {}, CheckpointError, "holds a qwen2_moe; only safetensors of .* can be merged"),
        (
            "qwen3_moe",
            {"mlp_only_layers": [0]},
            {},
            CheckpointError,
            r"dense layers of width .*, and its experts would become FFNs of",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(tmp_path: Path, kind, fields, choices, error, text) -> None:
    source = save_dense(NATIVE_MOES[kind](**fields), tmp_path / "moe")
    with pytest.raises(error, match=text):
        merged(source, **choices)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"router_type": "sigmoid_bias", "router_scale": 2.5}, True),
        ({"norm_topk_prob": False}, True),
        ({"norm_topk_prob": False, "router_type": "hash"}, False),
        ({"norm_topk_prob": True}, False),
    ],
)
def test_the_card_says_where_weights_do_not_sum_to_one(tmp_path: Path, fields: dict[str, Any], said: bool) -> None:
    tiny_family("gpt2", **fields).save_pretrained(tmp_path / "moe")
    assert ("do not sum to 1 there" in (merged(tmp_path / "moe") / "README.md").read_text()) is said


def test_experts_are_chosen_when_all_else_is_checked(tmp_path: Path) -> None:
    calls: list[int] = []

    def choose() -> dict[int, list[int]]:
        calls.append(1)
        return {0: [1], 1: [0]}

    source = save_dense(NATIVE_MOES["mixtral"](), tmp_path / "moe")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    with pytest.raises(CheckpointError):
        upcycle_directory(str(source), tmp_path / "taken", target="dense", kept_experts=choose)
    for choice in ({"num_experts": 4}, {"granularity": 2}, {"branches": [str(source)]}):
        with pytest.raises(ConfigError, match="has no meaning"):
            merged(source, kept_experts=choose, **choice)
    tiny_family("megabyte").save_pretrained(tmp_path / "bytes")
    with pytest.raises(CheckpointError, match="can be merged"):
        upcycle_directory(str(tmp_path / "bytes"), tmp_path / "x", target="dense", kept_experts=choose)
    assert calls == []
    merged(source, kept_experts=choose)
    assert calls == [1]


def test_a_gated_shared_expert_is_refused(tmp_path: Path) -> None:
    tiny_family("gpt2", shared_expert_intermediate_size=8, shared_expert_gate=True).save_pretrained(tmp_path / "moe")
    with pytest.raises(CheckpointError, match="gates its shared expert"):
        merged(tmp_path / "moe")
