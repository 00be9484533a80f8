"""The implicit filter against its equations, and alone as a convolution."""

import math

import pytest
import torch
from torch import nn

from moe_hf.base.errors import ConfigError
from moe_hf.layers.hyena_filter import HyenaFilter
from moe_hf.ops.sequence.long_conv import reference_long_conv


@pytest.fixture
def make():
    def build(dim: int = 6, max_length: int = 50, **kwargs) -> HyenaFilter:
        torch.manual_seed(0)
        return HyenaFilter(dim, max_length, **{"embedding_dim": 5, "mlp_width": 8, **kwargs})

    return build


def filter_of_the_paper(module: HyenaFilter, length: int) -> torch.Tensor:
    """Lag by lag and channel by channel, from the equations."""
    longest, dim, bands = module.max_length, module.dim, (module.embedding_dim - 1) // 2
    offset = module.feature_offset
    rows = []
    for lag in range(length):
        share = lag / (longest - 1)
        bases = [1e-4 + k * (bands - 1 - 1e-4) / max(1, bands - 1) for k in range(bands)]
        # Real and imaginary parts of exp(-i f 2 pi lag / longest).
        waves = [torch.exp(torch.tensor(-2j * math.pi * f * lag / longest)) for f in bases]
        features = torch.tensor([share, *[float(w.real) for w in waves], *[float(w.imag) for w in waves]])
        hidden = features if offset is None else features + offset[lag]
        for layer in module.hidden:
            hidden = torch.sin(module.frequency * layer(hidden))
        slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
        decay = torch.tensor([slow + d * (fast - slow) / max(1, dim - 1) for d in range(dim)])
        rows.append(module.out(hidden) * (torch.exp(-decay * share) + module.window_shift))
    return torch.stack(rows)


class TestTheFilter:
    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"embedding_dim": 3, "num_inner_layers": 0},
            {"embedding_dim": 9, "sine_frequency": 1.0, "window_shift": 0.0},
            {"learned_features": True, "num_inner_layers": 3},
        ],
    )
    def test_is_that_of_the_equations(self, make, kwargs) -> None:
        module = make(**kwargs)
        if module.feature_offset is not None:
            nn.init.normal_(module.feature_offset, std=0.1)
        for length in (1, 2, 49, 50):
            torch.testing.assert_close(module.filter(length), filter_of_the_paper(module, length), atol=2e-6, rtol=1e-4)

    def test_a_shorter_one_is_its_beginning(self, make) -> None:
        module = make()
        torch.testing.assert_close(module.filter(50)[:13], module.filter(13))

    def test_longer_than_its_maximum_is_an_error(self, make) -> None:
        with pytest.raises(ConfigError, match=r"51 lags was asked for, but max_length=50"):
            make().filter(51)

    @pytest.mark.parametrize("max_length", [50, 800])
    def test_a_fresh_one_keeps_the_variance_of_its_input(self, max_length: int) -> None:
        torch.manual_seed(0)
        energy = HyenaFilter(32, max_length).filter(max_length).square().sum(0).mean()
        assert 0.4 < energy < 2.0

    def test_lags_of_a_half_precision_model_stay_apart(self, make) -> None:
        module = make(max_length=4000)
        exact = module.filter(4000)
        rounded = module.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = rounded.filter(4000)
        assert found.dtype == torch.float32
        assert (found[1:] != found[:-1]).any(dim=1).all()
        assert (found - exact).norm() / exact.norm() < 0.05

    def test_every_weight_learns(self, make) -> None:
        module = make(learned_features=True)
        module(torch.randn(2, 50, 6)).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
        assert not make(train_frequency=False).frequency.requires_grad


class TestAlone:
    @pytest.mark.parametrize("length", [1, 2, 7, 31, 50])
    def test_convolves_at_any_length(self, make, length: int) -> None:
        module = make()
        x = torch.randn(3, length, 6)
        expected = reference_long_conv(x, module.filter(length), module.skip)
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)

    def test_a_longer_sequence_is_an_error_and_never_cut(self, make) -> None:
        with pytest.raises(ConfigError, match="80 tokens is longer than the filter, which has 50"):
            make()(torch.randn(1, 80, 6))

    def test_rows_of_documents_that_fit_may_be_longer(self, make) -> None:
        module, x = make(), torch.randn(1, 80, 6)
        starts = torch.zeros(1, 80, dtype=torch.bool)
        starts[:, 45] = True
        expected = torch.cat([module(x[:, :45]), module(x[:, 45:])], dim=1)
        torch.testing.assert_close(module(x, starts_BS=starts), expected, atol=1e-5, rtol=1e-5)
        mask = torch.ones(1, 80)
        mask[:, 50:] = 0
        torch.testing.assert_close(module(x, mask_BS=mask)[:, :50], module(x[:, :50]), atol=1e-5, rtol=1e-5)

    def test_an_empty_sequence_stays_empty(self, make) -> None:
        assert make()(torch.randn(2, 0, 6)).shape == (2, 0, 6)

    def test_a_filter_of_one_lag(self, make) -> None:
        module = make(max_length=1)
        x = torch.randn(2, 1, 6)
        torch.testing.assert_close(module(x), x * (module.filter(1) + module.skip))

    def test_padding_and_documents(self, make) -> None:
        module = make()
        x = torch.randn(1, 20, 6)
        mask = torch.ones(1, 20)
        mask[:, :4] = 0
        starts = torch.zeros(1, 20, dtype=torch.bool)
        starts[:, 11] = True
        out = module(x, mask_BS=mask, starts_BS=starts)
        torch.testing.assert_close(out[:, 4:11], module(x[:, 4:11]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out[:, 11:], module(x[:, 11:]), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("lr", [1e-3, 1e-2])
    def test_copies_a_token_from_a_fixed_distance_after_training(self, lr: float) -> None:
        torch.manual_seed(0)
        module = HyenaFilter(4, 64)
        optimizer = torch.optim.Adam(module.parameters(), lr=lr)
        losses = []
        for _ in range(60):
            x = torch.randn(8, 64, 4)
            wanted = torch.cat([torch.zeros(8, 5, 4), x[:, :-5]], dim=1)
            loss = (module(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.05 * losses[0]

    def test_compiles_to_one_graph(self, make) -> None:
        module = make()
        x = torch.randn(2, 33, 6)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("kwargs", "text"),
        [
            ({"dim": 0}, "dim must be an integer >= 1, got 0"),
            ({"max_length": 0}, "max_length"),
            ({"embedding_dim": 4}, "odd and >= 3 .* got 4; 5 would do"),
            ({"embedding_dim": 1}, "got 1; 3 would do"),
            ({"num_inner_layers": -1}, "num_inner_layers"),
        ],
    )
    def test_are_named(self, make, kwargs, text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            make(**kwargs)
