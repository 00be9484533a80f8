"""The sparse FFN: each token goes to its own experts, and all to the shared one."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.layers.ffn import FFNS
from moe_hf.layers.ffn.moe import SparseFFN

B, S, D = 2, 5, 32


@pytest.fixture
def make_ffn(tiny_config):
    def make(**overrides) -> SparseFFN:
        torch.manual_seed(0)
        ffn = FFNS["sparse"](tiny_config(experts_implementation="eager", **overrides)).eval()
        for parameter in ffn.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return ffn

    return make


@pytest.fixture
def x_BSD() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1))


def test_a_token_s_output_does_not_depend_on_the_others(make_ffn, x_BSD: torch.Tensor) -> None:
    ffn = make_ffn()
    whole = ffn(x_BSD)
    for b in range(B):
        for s in range(S):
            torch.testing.assert_close(ffn(x_BSD[b : b + 1, s : s + 1]), whole[b : b + 1, s : s + 1])


def test_is_the_routed_sum_plus_the_shared_expert(make_ffn, x_BSD: torch.Tensor) -> None:
    ffn = make_ffn(shared_expert_intermediate_size=20)
    flat = x_BSD.view(-1, D)
    _, weight, expert = ffn.gate(flat)
    expected = ffn.experts(flat, expert, weight).view_as(x_BSD) + ffn.shared_expert(x_BSD)
    torch.testing.assert_close(ffn(x_BSD), expected)
    assert ffn.shared_expert.up_proj.weight.shape == (20, D)


def test_has_no_shared_expert_unless_asked(make_ffn) -> None:
    assert make_ffn().shared_expert is None
    assert set(dict(make_ffn().named_parameters())) == {
        "gate.weight",
        "experts.up_proj",
        "experts.up_proj_bias",
        "experts.down_proj",
        "experts.down_proj_bias",
    }


def test_a_sequence_that_is_not_contiguous_is_fine(make_ffn, x_BSD: torch.Tensor) -> None:
    ffn = make_ffn()
    strided = x_BSD.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(ffn(strided), ffn(x_BSD))


def test_a_single_expert_is_a_dense_ffn(make_ffn, x_BSD: torch.Tensor) -> None:
    ffn = make_ffn(num_experts=1, num_experts_per_tok=1)
    hidden = ffn.experts.act_fn(x_BSD @ ffn.experts.up_proj[0].T + ffn.experts.up_proj_bias[0])
    torch.testing.assert_close(ffn(x_BSD), hidden @ ffn.experts.down_proj[0].T + ffn.experts.down_proj_bias[0])


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown mlp_layer_types 'sparce'; .*did you mean 'sparse'"):
        FFNS["sparce"]
