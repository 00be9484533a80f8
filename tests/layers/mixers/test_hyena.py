"""The Hyena operator by itself: its equations, its stretches, its share of the work."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from moe_hf.base.errors import ConfigError
from moe_hf.config.hyena_moe import HyenaWithMoEConfig
from moe_hf.layers.inputs import PLAIN, LayerInputs
from moe_hf.layers.mixers import hyena
from moe_hf.layers.mixers.hyena import HyenaOperator
from moe_hf.ops.sequence.long_conv import reference_long_conv

B, S, D = 3, 29, 6


def make(order: int = 2, **overrides) -> HyenaOperator:
    torch.manual_seed(0)
    config = HyenaWithMoEConfig(
        hidden_size=D,
        num_attention_heads=1,
        num_hidden_layers=2,
        max_position_embeddings=40,
        hyena_order=order,
        hyena_filter_embedding=5,
        hyena_filter_width=8,
        **overrides,
    )
    operator = HyenaOperator(config, 0).eval()
    with torch.no_grad():
        for parameter in operator.parameters():
            nn.init.normal_(parameter, std=0.4)
    return operator


def run(operator: HyenaOperator, x: torch.Tensor, mask=None, starts=None) -> torch.Tensor:
    out, weights, _ = operator(x, LayerInputs(padding_mask=mask, document_starts=starts, shared_values={}))
    assert weights is None
    return out


def operator_of_the_paper(operator: HyenaOperator, x: torch.Tensor) -> torch.Tensor:
    """Definition 3.1 with direct sums: projections through a short convolution, gates and long convolutions in turn."""
    u, taps = operator.in_proj(x), operator.short_conv_weight.shape[1]
    padded = torch.cat([torch.zeros(len(x), taps - 1, u.shape[-1]), u], dim=1)
    z = operator.short_conv_bias + sum(
        padded[:, tap : tap + x.shape[1]] * operator.short_conv_weight[:, tap] for tap in range(taps)
    )
    *gates, v = z.split(D, dim=-1)
    h = operator.filter.filter(x.shape[1])
    for i, gate in enumerate(reversed(gates[1:])):
        part = slice(i * D, (i + 1) * D)
        v = reference_long_conv(v * gate, h[:, part], operator.filter.skip[part])
    return operator.out_proj(v * gates[0])


class TestOperator:
    @pytest.mark.parametrize(("order", "taps"), [(2, 3), (3, 3), (4, 1), (2, 5)])
    @pytest.mark.parametrize("length", [1, 2, S])
    def test_is_that_of_the_paper(self, order: int, taps: int, length: int) -> None:
        operator = make(order, hyena_short_conv=taps)
        x = torch.randn(B, length, D)
        torch.testing.assert_close(run(operator, x), operator_of_the_paper(operator, x), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("order", [2, 3])
    @pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
    def test_stretches_change_neither_values_nor_gradients(self, monkeypatch, order: int, layout: str) -> None:
        operator = make(order)
        x = torch.randn(B, S, D, requires_grad=True)
        mask = (torch.rand(B, S) > 0.3).long() if layout == "padded" else None
        starts = torch.rand(B, S) > 0.8 if layout == "packed" else None
        weight = torch.randn(B, S, D) * (1 if mask is None else mask[..., None])
        found = []
        for stretch in (1024, 7, 1):
            monkeypatch.setattr(hyena, "STRETCH", stretch)
            out = run(operator, x, mask, starts) * (weight != 0)
            tensors = [x, *operator.parameters()]
            found.append([out, *torch.autograd.grad((out * weight).sum(), tensors)])
        for other in found[1:]:
            for one, expected in zip(other, found[0], strict=True):
                torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)

    def test_dropout_acts_in_training_alone(self) -> None:
        operator = make(hyena_dropout=0.5)
        x = torch.randn(B, S, D)
        assert run(operator, x).equal(run(operator, x))
        operator.train()
        assert not run(operator, x).equal(run(operator, x))

    def test_room_is_asked_for_without_touching_the_cache(self) -> None:
        operator = make()
        cache = DynamicCache(config=operator.config)
        asked = LayerInputs(cache=cache)
        operator.require_room(40, asked)
        with pytest.raises(ConfigError, match="41 tokens is longer than the filter, which has 40"):
            operator.require_room(41, asked)
        operator.require_room(41, asked._replace(document_starts=torch.arange(41)[None] == 20))
        operator.require_room(41, asked._replace(padding_mask=(torch.arange(41)[None] > 0).long()))
        assert cache.layers[0].recent_inputs(2) is None
        operator.require_room(41, PLAIN)

    def test_work_per_token_grows_with_the_logarithm(self) -> None:
        operator = make(3)
        assert operator.multiply_adds(1 << 13) - operator.multiply_adds(1 << 12) == 2 * D * 7.5


class TestConfiguration:
    def test_the_filter_is_as_long_as_the_longest_sequence(self) -> None:
        operator = make()
        assert operator.filter.max_length == 40
        with pytest.raises(ConfigError, match="41 tokens is longer than the filter, which has 40"):
            run(operator, torch.randn(1, 41, D))
