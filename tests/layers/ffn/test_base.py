"""Feed-forward networks in every shape: gated or not, with biases or without, dense or of experts."""

import pytest
import torch

from moe_hf import GPT2WithMoEConfig
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.moe import SparseFFN

SHAPES = [(gated, bias) for gated in (True, False) for bias in (True, False)]


def make_config(gated: bool, bias: bool, **fields) -> GPT2WithMoEConfig:
    return GPT2WithMoEConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, num_experts=3,
        num_experts_per_tok=3, mlp_gated=gated, mlp_bias=bias, hidden_act="silu", **fields,
    )  # fmt: skip


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize(("gated", "bias"), SHAPES)
@pytest.mark.parametrize("backend", ["eager", "sorted", "grouped_mm"])
def test_identical_experts_are_the_dense_network(gated: bool, bias: bool, backend: str) -> None:
    config = make_config(gated, bias, experts_implementation=backend)
    dense, sparse = drawn(DenseFFN(config)), drawn(SparseFFN(config, 0))
    experts = sparse.experts
    assert (experts.has_gate, experts.has_bias) == (gated, bias)
    with torch.no_grad():
        for kind in ("weight", "bias") if bias else ("weight",):
            suffix = "" if kind == "weight" else "_bias"
            up = getattr(dense.up_proj, kind)
            if gated:
                up = torch.cat([getattr(dense.gate_proj, kind), up])
            getattr(experts, ("gate_up_proj" if gated else "up_proj") + suffix).copy_(up.expand(3, *up.shape))
            getattr(experts, f"down_proj{suffix}").copy_(
                getattr(dense.down_proj, kind).expand(3, *getattr(dense.down_proj, kind).shape)
            )
    x_BSD = torch.randn(2, 5, 16)
    torch.testing.assert_close(sparse(x_BSD), dense(x_BSD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gated", "bias"), SHAPES)
def test_only_what_was_asked_for_has_parameters(gated: bool, bias: bool) -> None:
    names = {name for name, _ in SparseFFN(make_config(gated, bias), 0).experts.named_parameters()}
    up = "gate_up_proj" if gated else "up_proj"
    assert names == {up, "down_proj"} | ({f"{up}_bias", "down_proj_bias"} if bias else set())
