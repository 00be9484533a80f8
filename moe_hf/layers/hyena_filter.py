"""The implicit long filter of Hyena: a small network of the lag, under a window that decays.

Shapes: B batch, S positions, L lags, D channels, E features of a lag, W width of the network.
"""

import math
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from transformers import initialization as init

from moe_hf.base.errors import ConfigError
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.ops.dtypes import float32_or_more, without_autocast
from moe_hf.ops.sequence.long_conv import long_conv

# Where the window of the fastest and the slowest channel has fallen to WINDOW_TARGET, as a share of the unit of time.
FAST_DECAY, SLOW_DECAY = 0.3, 1.5
WINDOW_TARGET = 1e-2


class PreciseLinear(nn.Linear):
    """nn.Linear that computes in the precision of its input, whatever that of its weights.

    The result lies in memory with the features outside, as transforms along the other axis read it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear, (L, features) out of (L, inputs)."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if x.ndim != 2:
            return nn.functional.linear(x, weight, bias)
        return (weight @ x.t() if bias is None else torch.addmm(bias[:, None], weight, x.t())).t()


class HyenaFilter(nn.Module, DrawsOwnWeights):
    """A causal convolution whose filter, as long as the sequence, is a function of the lag (Poli et al. 2023, Hyena).

    `h(t) = MLP(features(t)) * (exp(-decay * t) + shift)` with t the lag, 0 at once and 1 at `time_base - 1`: section
    3.3 and appendix D.3, with the sine as the network's activation. Parameters do not grow with the length, unless the
    features are learnt. Lags are computed in single precision at least, also in a model of half precision.

    Args:
        dim: channels D, each with a filter of its own.
        max_length: lags that there are; a longer document is an error, padding not counted.
        embedding_dim: features E of a lag: the lag itself, and cosines and sines of (E - 1) / 2 frequencies; odd, >= 3.
        mlp_width: width W of the network.
        num_inner_layers: its layers between the first and the last.
        sine_frequency: initial factor in the sines. Fresh weights are smaller by as much, so that it sets how fast the
            filter learns: at 4 it learns with learning rates from 3e-4 to 1e-2, at 10 or 14 only below 3e-3.
        train_frequency: whether the factor, one per unit, is learnt.
        window_shift: what is added to the window, so that no lag is out of reach; 0.05 in HyenaDNA, else often 0.
        learned_features: whether an offset to the features, (time_base, E), is learnt as in HyenaDNA.
        time_base: lags that are the unit of time; None means `max_length`. Kept while `max_length` grows, all lags that
            a trained filter has stay as they are, and those beyond were never trained.

    Raises:
        ConfigError: a size is wrong.

    >>> HyenaFilter(dim=8, max_length=100)(torch.randn(2, 37, 8)).shape
    torch.Size([2, 37, 8])
    """

    def __init__(
        self,
        dim: int,
        max_length: int = 1024,
        *,
        embedding_dim: int = 33,
        mlp_width: int = 64,
        num_inner_layers: int = 2,
        sine_frequency: float = 4.0,
        train_frequency: bool = True,
        window_shift: float = 0.05,
        learned_features: bool = False,
        time_base: int | None = None,
    ) -> None:
        super().__init__()
        base = max_length if time_base is None else time_base
        for name, size in {"dim": dim, "max_length": max_length, "mlp_width": mlp_width, "time_base": base}.items():
            if size < 1:
                raise ConfigError(f"{name} must be an integer >= 1, got {size}")
        if embedding_dim < 3 or embedding_dim % 2 == 0:
            raise ConfigError(
                f"embedding_dim must be odd and >= 3 (the lag, cosines, sines), got {embedding_dim}; "
                f"{max(3, embedding_dim + 1)} would do"
            )
        if num_inner_layers < 0:
            raise ConfigError(f"num_inner_layers must be an integer >= 0, got {num_inner_layers}")
        self.dim, self.max_length, self.embedding_dim, self.time_base = dim, max_length, embedding_dim, base
        self.sine_frequency, self.window_shift = sine_frequency, window_shift
        widths = [embedding_dim] + [mlp_width] * (num_inner_layers + 1)
        self.hidden = nn.ModuleList([PreciseLinear(a, b) for a, b in pairwise(widths)])
        self.out = PreciseLinear(mlp_width, dim, bias=False)
        self.frequency = nn.Parameter(torch.empty(mlp_width), requires_grad=train_frequency)
        self.skip = nn.Parameter(torch.empty(dim))
        self.feature_offset = nn.Parameter(torch.empty(base, embedding_dim)) if learned_features else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights: sines of about one radian, and a filter that keeps the variance of its input."""
        for layer in self._hidden_layers():
            # Features and sines have a mean square of one half.
            init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features) / self.sine_frequency)
            init.zeros_(layer.bias)
        # The windows sum to about a sixteenth of the lags.
        lags = max(1.0, self.time_base / 16)
        init.normal_(self.out.weight, std=math.sqrt(2 / (self.out.in_features * lags)))
        init.constant_(self.frequency, self.sine_frequency)
        init.normal_(self.skip)
        if self.feature_offset is not None:
            init.zeros_(self.feature_offset)

    def draw_weights(self, std: float, residual_std: float) -> None:
        """The same, whatever the spread of other weights."""
        self.reset_parameters()

    def filter(self, length: int) -> torch.Tensor:
        """The first `length` lags of every channel's filter, (length, D), in float32 (float64 for float64 weights).

        Raises:
            ConfigError: there are fewer lags.
        """
        if length > self.max_length:
            raise ConfigError(
                f"a filter of {length} lags was asked for, but max_length={self.max_length}; shorten the sequence, or "
                f"build the filter with a larger max_length and time_base={self.time_base}, which keeps the lags it has"
            )
        frequency_W = self.frequency
        dtype = float32_or_more(frequency_W)
        # Autocast would round the lags: in half precision thousands of neighbours would become one.
        with without_autocast(frequency_W):
            lag_L = torch.arange(length, device=frequency_W.device, dtype=dtype)
            h_LW = self._features(lag_L)
            for layer in self.hidden:
                h_LW = torch.sin(frequency_W.to(dtype) * layer(h_LW))
            # In place: at thousands of lags, fresh memory for each intermediate would cost more than the arithmetic.
            return self._window(lag_L).add_(self.window_shift).mul_(self.out(h_LW).t()).t()

    def forward(
        self, x_BSD: torch.Tensor, mask_BS: torch.Tensor | None = None, starts_BS: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sequence convolved with the filter, plus `skip` times itself; same shape and dtype.

        Args:
            x_BSD: the sequence.
            mask_BS: nonzero at real tokens; None means that all are. Padding may stand anywhere.
            starts_BS: True where a document begins that does not see what came before it.

        Raises:
            ConfigError: a document is longer than `max_length`.
        """
        filter_LD = self.filter(min(x_BSD.shape[1], self.max_length))
        return long_conv(x_BSD, filter_LD, self.skip, mask_BS=mask_BS, starts_BS=starts_BS)

    def extra_repr(self) -> str:
        """What printing shows beside the layers."""
        sizes = f"dim={self.dim}, max_length={self.max_length}, time_base={self.time_base}"
        return f"{sizes}, window_shift={self.window_shift}"

    def _hidden_layers(self) -> list[nn.Linear]:
        return [cast(nn.Linear, layer) for layer in self.hidden]

    def _features(self, lag_L: torch.Tensor) -> torch.Tensor:
        feature_LE = lag_features(lag_L, self.time_base, self.embedding_dim)
        if self.feature_offset is None:
            return feature_LE
        # Not len(), which torch.export takes for a constant.
        lags = lag_L.shape[0]
        offset_LE = self.feature_offset[:lags].to(lag_L.dtype)
        # Lags that were never trained have none.
        return feature_LE + nn.functional.pad(offset_LE, (0, 0, 0, lags - offset_LE.shape[0]))

    def _window(self, lag_L: torch.Tensor) -> torch.Tensor:
        """exp(-decay * t) by channel, (D, L)."""
        decay_D = window_decays(self.dim, lag_L)
        return torch.outer(-decay_D, lag_L / max(1, self.time_base - 1)).exp_()


def lag_features(lag_L: torch.Tensor, time_base: int, embedding_dim: int) -> torch.Tensor:
    """The lag as a share of the unit of time, and cosines and sines of its multiples, (L, E), as in HyenaDNA."""
    bands = (embedding_dim - 1) // 2
    # The lowest band is not quite constant, as in the reference implementation.
    band = torch.linspace(1e-4, bands - 1, bands, device=lag_L.device, dtype=lag_L.dtype)
    angle = band * (2 * math.pi * lag_L / time_base)[:, None]
    share_L1 = (lag_L / max(1, time_base - 1))[:, None]
    # Real and imaginary part of exp(-i * angle), hence the sign.
    return torch.cat([share_L1, angle.cos(), -angle.sin()], dim=1)


def window_decays(dim: int, like: torch.Tensor) -> torch.Tensor:
    """The decay of each channel's window over the unit of time, (D,): evenly spaced from slow to fast."""
    slow, fast = (-math.log(WINDOW_TARGET) / share for share in (SLOW_DECAY, FAST_DECAY))
    return torch.linspace(slow, fast, dim, device=like.device, dtype=like.dtype)
