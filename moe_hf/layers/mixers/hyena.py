"""The Hyena operator: long convolutions between gates, in place of attention.

Shapes: B batch, S positions of this call, D width, N order, C = (N + 1) D channels behind the first projection.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.caches.history import History, LongFilter
from moe_hf.layers.caches.history_cache import history_of
from moe_hf.layers.hyena_filter import HyenaFilter
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import Mixer, MixerOutput
from moe_hf.ops.sequence.long_conv import long_conv
from moe_hf.ops.sequence.short_conv import short_conv

# Positions that are projected and gated at a time: memory that stays in the processor's cache instead of fresh pages.
STRETCH = 1024


class OperatorFilter(HyenaFilter):
    """The filter as an operator needs it: called for its lags, which the operator or a cache convolves with."""

    def forward(self, length: int | None) -> tuple[torch.Tensor | None, torch.Tensor]:  # type: ignore[override]
        """As many lags as `filter` gives, None where none are asked for, and the weight of the input itself."""
        return (None if length is None else self.filter(length)), self.skip


class HyenaOperator(Mixer, DrawsOwnWeights):
    """Poli et al. 2023, definition 3.1: `v <- h_n * (x_n . v)` for each gate but the last, which multiplies the output.

    The projections v, x_1, ..., x_N come from one linear layer and a short convolution. Reaches
    `max_position_embeddings` tokens; the cache keeps the inputs of the long convolutions.
    """

    output_projections: ClassVar[tuple[str, ...]] = ("out_proj",)

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, self.order = config.hidden_size, config.hyena_order
        channels = (self.order + 1) * width
        self.in_proj = nn.Linear(width, channels)
        self.out_proj = nn.Linear(width, width)
        # (C, taps); the last column is the token itself, as in nn.Conv1d.
        self.short_conv_weight = nn.Parameter(torch.empty(channels, config.hyena_short_conv))
        self.short_conv_bias = nn.Parameter(torch.empty(channels))
        self.filter = OperatorFilter(
            (self.order - 1) * width,
            config.max_position_embeddings,
            embedding_dim=config.hyena_filter_embedding,
            mlp_width=config.hyena_filter_width,
            num_inner_layers=config.hyena_filter_layers,
            sine_frequency=config.hyena_filter_frequency,
            train_frequency=config.hyena_filter_train_frequency,
            window_shift=config.hyena_filter_shift,
            learned_features=config.hyena_filter_learned_features,
            time_base=config.hyena_lags,
        )
        self.dropout = nn.Dropout(config.hyena_dropout)

    def draw_weights(self, std: float, residual_std: float) -> None:
        """The short convolution's as nn.Conv1d draws them; the filter draws its own."""
        bound = self.short_conv_weight.shape[1] ** -0.5
        init.uniform_(self.short_conv_weight, -bound, bound)
        init.zeros_(self.short_conv_bias)
        init.normal_(self.out_proj.weight, mean=0.0, std=residual_std)

    def multiply_adds(self, context: int) -> int:
        """Of three transforms over twice the context, 1.25 N log2 N each, a token's share."""
        return int((self.order - 1) * self.config.hidden_size * 7.5 * math.log2(2 * context))

    def require_room(self, num_tokens: int, inputs: LayerInputs) -> None:
        """As `Mixer.require_room`; without a cache there is nothing to spoil, and the convolution itself refuses."""
        history = history_of(inputs.cache, self.layer_idx)
        if history is not None:
            history.require_room(num_tokens, self.filter.max_length, inputs)

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> MixerOutput:
        """As `Mixer.forward`.

        Raises:
            ConfigError: a document is longer than the filter, or the cache has no place for the history.
        """
        # A call that is refused must leave the history as it was.
        self.require_room(x_BSD.shape[1], inputs)
        history = history_of(inputs.cache, self.layer_idx)
        inputs = _without_idle_mask(inputs)
        *gates, parts = self._project(x_BSD, inputs, history)
        # With a history lags are asked for where they are needed, which is once per epoch of tokens.
        filter_LC, skip_C = self.filter(None if history is not None else min(x_BSD.shape[1], self.filter.max_length))
        filters = [] if history is None else self._filters(skip_C)
        # x_1 comes first; x_N gates the output and stands in front.
        for i, gate in enumerate(reversed(gates[1:])):
            v_BSD = self.dropout(_joined([v * x for v, x in zip(parts, gate, strict=True)]))
            if history is not None:
                v_BSD = history.convolve(v_BSD, filters[i], inputs)
            elif filter_LC is not None:
                part = self._channels_of(i)
                v_BSD = long_conv(v_BSD, filter_LC[:, part], skip_C[part], **inputs.layout)
            parts = (v_BSD,) if len(parts) == 1 else v_BSD.split(STRETCH, dim=1)
        return MixerOutput(_joined([self.out_proj(v * x) for v, x in zip(parts, gates[0], strict=True)]))

    def _project(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, history: History | None
    ) -> list[tuple[torch.Tensor, ...]]:
        """x_N, ..., x_1 and v behind the short convolution, each in stretches of the positions."""
        taps = self.short_conv_weight.shape[1]
        state = None if history is None else history.recent_inputs(taps - 1)
        stretches, start = [], 0
        # A compiler would make one graph per number of stretches.
        for part_BSD, part in inputs.stretches(x_BSD, None if torch.compiler.is_compiling() else STRETCH):
            u_BSC = self.in_proj(part_BSD)
            z_BSC, state = short_conv(
                u_BSC, self.short_conv_weight, self.short_conv_bias, initial_state=state, **part.layout
            )
            # What goes in, not what comes out: the next call's taps reach back over the inputs.
            if history is not None:
                history.keep_inputs(u_BSC, taps - 1, part, start)
            stretches.append(z_BSC.chunk(self.order + 1, dim=-1))
            start += part_BSD.shape[1]
        return list(zip(*stretches, strict=True))

    def _channels_of(self, number: int) -> slice:
        """Those of one long convolution among the filter's."""
        return slice(number * self.config.hidden_size, (number + 1) * self.config.hidden_size)

    def _filters(self, skip_C: torch.Tensor) -> list[LongFilter]:
        """One for each long convolution, in order; all are computed together, once per length asked for."""
        computed: dict[int, torch.Tensor] = {}

        def channels(part: slice) -> Callable[[int], torch.Tensor]:
            def first(lags: int) -> torch.Tensor:
                if lags not in computed:
                    computed[lags], _ = self.filter(lags)
                return computed[lags][:, part]

            return first

        parts = [self._channels_of(i) for i in range(self.order - 1)]
        lags, version = self.filter.max_length, self._filter_version()
        return [LongFilter(i, channels(part), lags, skip_C[part], version) for i, part in enumerate(parts)]

    def _filter_version(self) -> tuple[tuple[int, int], ...] | None:
        """What changes whenever a weight of the filter is replaced or written to; a compiler cannot look at it."""
        if torch.compiler.is_compiling():
            return None
        # Tensors of inference mode count no writes.
        return tuple((id(p), 0 if p.is_inference() else p._version) for p in self.filter.parameters())


def _joined(stretches: list[torch.Tensor]) -> torch.Tensor:
    return stretches[0] if len(stretches) == 1 else torch.cat(stretches, dim=1)


def _without_idle_mask(inputs: LayerInputs) -> LayerInputs:
    """The inputs without a mask that hides nothing; its values are waited for once per call of the model."""
    mask_BS = inputs.padding_mask
    if mask_BS is None or torch.compiler.is_compiling():
        return inputs
    hides = inputs.shared("hyena_mask_hides", lambda: (mask_BS == 0).any().cpu())
    return inputs if bool(hides) else inputs._replace(padding_mask=None)
