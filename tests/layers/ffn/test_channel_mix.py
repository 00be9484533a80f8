"""RWKV's channel mixing: the token shift stands before the router, and its state in the cache."""

import pytest
import torch
from transformers.models.rwkv.configuration_rwkv import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward

from moe_hf import RWKVWithMoEConfig
from moe_hf.layers.ffn import make_ffn
from moe_hf.layers.ffn.channel_mix import ChannelMix
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.inputs import LayerInputs

B, S, D, INNER = 2, 9, 16, 24


def channel_mix(version: int, kind: str) -> ChannelMix:
    config = RWKVWithMoEConfig(
        hidden_size=D,
        num_attention_heads=2,
        intermediate_size=INNER,
        num_hidden_layers=2,
        rwkv_version=version,
        mlp_layer_types=[kind] * 2,
        num_experts=3,
    )
    torch.manual_seed(0)
    ffn = make_ffn(config, 1)
    assert isinstance(ffn, ChannelMix)
    with torch.no_grad():
        for parameter in ffn.parameters():
            parameter.normal_(std=0.3)
    return ffn.eval()


def inputs() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_version_4_is_that_of_transformers() -> None:
    ours, theirs = channel_mix(4, "dense"), RwkvFeedForward(RwkvConfig(hidden_size=D, intermediate_size=INNER))
    assert isinstance(ours.inner, DenseFFN)
    assert ours.receptance is not None
    assert ours.time_mix_receptance is not None
    theirs.time_mix_key.copy_(ours.time_mix_key.view(1, 1, D))
    theirs.time_mix_receptance.copy_(ours.time_mix_receptance.view(1, 1, D))
    theirs.key.weight.copy_(ours.inner.up_proj.weight)
    theirs.value.weight.copy_(ours.inner.down_proj.weight)
    theirs.receptance.weight.copy_(ours.receptance.weight)
    x = inputs()
    torch.testing.assert_close(ours(x), theirs(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("version", [4, 7])
def test_router_and_experts_see_the_mixed_tokens(version: int) -> None:
    ffn = channel_mix(version, "sparse")
    assert isinstance(ffn.inner, SparseFFN)
    seen = []
    ffn.inner.gate.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ffn.inner.experts.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = inputs()
    ffn(x)
    before = torch.cat([torch.zeros(B, 1, D), x[:, :-1]], dim=1)
    # Version 4 gives the share of the token itself, version 7 that of the one before.
    share = ffn.time_mix_key if version == 4 else 1 - ffn.time_mix_key
    expected = (x * share + before * (1 - share)).flatten(0, 1)
    for rows in seen:
        torch.testing.assert_close(rows, expected)
    assert len(seen) == 2


@torch.no_grad()
def test_the_receptance_gates_what_the_experts_give_as_a_whole() -> None:
    ffn = channel_mix(4, "sparse")
    assert ffn.receptance is not None
    open_out = ffn(inputs())
    ffn.receptance.weight.zero_()
    halved = ffn(inputs())
    given = []
    ffn.inner.register_forward_hook(lambda _, args, out: given.append(out))
    ffn(inputs())
    torch.testing.assert_close(halved, 0.5 * given[0])
    assert not torch.allclose(open_out, halved)


@torch.no_grad()
def test_padding_and_documents_are_not_looked_at() -> None:
    ffn, x = channel_mix(7, "dense"), inputs()
    mask = torch.ones(B, S, dtype=torch.long)
    mask[:, 3:5] = 0
    kept = mask[0].bool()
    torch.testing.assert_close(ffn(x, LayerInputs(padding_mask=mask))[:, kept], ffn(x[:, kept]))
    starts = torch.zeros(B, S, dtype=torch.bool)
    starts[:, 4] = True
    torch.testing.assert_close(ffn(x, LayerInputs(document_starts=starts))[:, 4:], ffn(x[:, 4:]))


def test_without_a_shift_a_layer_has_the_plain_network() -> None:
    config = RWKVWithMoEConfig(hidden_size=D, num_attention_heads=2, num_hidden_layers=2, mlp_token_shift="none")
    assert isinstance(make_ffn(config, 0), SparseFFN)
