"""The short convolution: its formula, its borders, and its state between calls."""

import pytest
import torch
from transformers import DynamicCache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.short_conv import ShortConv

B, S, D, W = 2, 7, 5, 3


@pytest.fixture
def conv() -> ShortConv:
    torch.manual_seed(0)
    conv = ShortConv(D, W, layer_idx=0)
    torch.nn.init.normal_(conv.weight)
    return conv


@pytest.fixture
def x_BSD() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1))


def test_is_the_identity_when_fresh(x_BSD: torch.Tensor) -> None:
    assert ShortConv(D, W, 0)(x_BSD).equal(x_BSD)


def test_adds_a_weighted_sum_of_the_tokens_before(conv: ShortConv, x_BSD: torch.Tensor) -> None:
    expected = x_BSD.clone()
    for t in range(S):
        for lag in range(W):
            if t - lag >= 0:
                # The last tap is the token itself.
                expected[:, t] += conv.weight[:, W - 1 - lag] * x_BSD[:, t - lag]
    torch.testing.assert_close(conv(x_BSD), expected)


def test_equals_torch_s_own_convolution(conv: ShortConv, x_BSD: torch.Tensor) -> None:
    padded = torch.nn.functional.pad(x_BSD.transpose(1, 2), (W - 1, 0))
    blended = torch.nn.functional.conv1d(padded, conv.weight[:, None], groups=D).transpose(1, 2)
    torch.testing.assert_close(conv(x_BSD), x_BSD + blended)


def test_does_not_look_ahead(conv: ShortConv, x_BSD: torch.Tensor) -> None:
    changed = x_BSD.clone()
    changed[:, 4:] += 1
    assert conv(changed)[:, :4].equal(conv(x_BSD)[:, :4])


def test_does_not_look_across_documents(conv: ShortConv, x_BSD: torch.Tensor) -> None:
    starts = torch.tensor([[0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1, 0]]).bool()
    out = conv(x_BSD, LayerInputs(document_starts=starts))
    for row, start, stop in ((0, 0, 3), (0, 3, 7), (1, 0, 1), (1, 1, 5), (1, 5, 7)):
        alone = conv(x_BSD[row : row + 1, start:stop])
        torch.testing.assert_close(out[row : row + 1, start:stop], alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_counts_nor_leaks(conv: ShortConv, x_BSD: torch.Tensor, side: str) -> None:
    real = slice(3, S) if side == "left" else slice(0, 4)
    mask = torch.zeros(B, S, dtype=torch.long)
    mask[:, real] = 1
    poisoned = torch.where(mask[..., None] == 1, x_BSD, torch.full_like(x_BSD, 1e6))
    out = conv(poisoned, LayerInputs(padding_mask=mask))
    torch.testing.assert_close(out[:, real], conv(x_BSD[:, real]))


@pytest.mark.parametrize("chunks", [(7,), (3, 4), (1,) * 7, (5, 1, 1), (1, 6)])
def test_chunks_with_a_cache_equal_the_whole(conv: ShortConv, x_BSD, tiny_config, chunks: tuple[int, ...]) -> None:
    cache = DynamicCache(config=tiny_config(mixer_short_conv=W, num_hidden_layers=1))
    parts, start = [], 0
    for length in chunks:
        parts.append(conv(x_BSD[:, start : start + length], LayerInputs(cache=cache)))
        start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), conv(x_BSD))


def test_a_single_tap_needs_no_state(x_BSD: torch.Tensor, tiny_config) -> None:
    conv = ShortConv(D, 1, 0)
    torch.nn.init.ones_(conv.weight)
    cache = DynamicCache(config=tiny_config(mixer_short_conv=1, num_hidden_layers=1))
    torch.testing.assert_close(conv(x_BSD, LayerInputs(cache=cache)), 2 * x_BSD)


def test_the_output_and_its_gradient_outlive_the_next_call(conv: ShortConv, x_BSD: torch.Tensor, tiny_config) -> None:
    # The cache updates its state in place; backward must not read the overwritten one.
    cache = DynamicCache(config=tiny_config(mixer_short_conv=W, num_hidden_layers=1))
    x_BSD.requires_grad_()
    first = conv(x_BSD[:, :4], LayerInputs(cache=cache))
    second = conv(x_BSD[:, 4:], LayerInputs(cache=cache))
    torch.cat([first, second], dim=1).square().sum().backward()
    chunked, x_BSD.grad = x_BSD.grad, None
    conv(x_BSD).square().sum().backward()
    torch.testing.assert_close(chunked, x_BSD.grad)


def test_a_cache_made_without_the_configuration_is_refused(conv: ShortConv, x_BSD: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"DynamicCache has no place .* config=model.config"):
        conv(x_BSD, LayerInputs(cache=DynamicCache()))
