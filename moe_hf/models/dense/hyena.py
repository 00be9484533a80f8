"""Reads a HyenaDNA as on the Hub.

Shapes: L lags, E features of a lag, W width of the filter's network.
"""

import re
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.hyena_filter import lag_features, window_decays
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import Computed, Held, LazyTensor, Sliced
from moe_hf.models.dense.source import DenseSource

_FILTER = "mixer.filter_fn"
_NETWORK = f"{_FILTER}.implicit_filter"


class HyenaDNA(DecoderFormat):
    """LongSafari's HyenaDNA (Nguyen et al. 2023) as on the Hub, with or without its "hyena." prefix.

    >>> HyenaDNA().recognises(["hyena.backbone.layers.0.mixer.filter_fn.bias"])
    True
    """

    name = "dense HyenaDNA"
    model_types = ("hyenadna", "hyena")
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "hyena_filter_frequency",
        "hyena_filter_shift",
        "hyena_filter_learned_features",
    )
    prefix = "hyena."
    layers = "backbone.layers"
    marks = ("mixer.filter_fn.bias",)
    # The positions, which follow from the length; and the further names of the sines that all share one tensor.
    ignored = re.compile(r"\.filter_fn\.(pos_emb\.t|implicit_filter\.\d+\.freq)$")
    embedding = ("backbone.embeddings.word_embeddings.weight",)
    last_norm = "backbone.ln_f"
    may_untie_head = True
    mixer = "hyena"
    mixing = "Hyena operators in all layers"
    positions = ("none",)
    needs: ClassVar[dict[str, Any]] = {
        **DecoderFormat.needs,
        "norm_type": "layer",
        "mlp_gated": False,
        "mlp_bias": True,
    }

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """As in DecoderFormat."""
        prefix, width = f"{self.layers}.{layer}", config.hidden_size
        channels, taps = (config.hyena_order + 1) * width, config.hyena_short_conv
        state = {
            **self.norm(source, config, "input_layernorm", f"{prefix}.norm1"),
            **self.norm(source, config, "post_attention_layernorm", f"{prefix}.norm2"),
        }
        for name, rows in (("in_proj", channels), ("out_proj", width)):
            state[f"mixer.{name}.weight"] = source.sliced(f"{prefix}.mixer.{name}.weight", (rows, width))
            state[f"mixer.{name}.bias"] = source.sliced(f"{prefix}.mixer.{name}.bias", (rows,))
        taps_of_conv = source.sliced(f"{prefix}.mixer.short_filter.weight", (channels, 1, taps))
        state["mixer.short_conv_weight"] = Computed(taps_of_conv, (channels, taps), lambda value: value[:, 0])
        state["mixer.short_conv_bias"] = source.sliced(f"{prefix}.mixer.short_filter.bias", (channels,))
        return state | {f"mixer.filter.{name}": value for name, value in _filter(source, config, prefix).items()}

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, Sliced]:
        """As in DecoderFormat."""
        prefix, width, inner = f"{self.layers}.{layer}.mlp", config.hidden_size, config.ffn_width
        return {
            "up_proj.weight": source.sliced(f"{prefix}.fc1.weight", (inner, width)),
            "up_proj.bias": source.sliced(f"{prefix}.fc1.bias", (inner,)),
            "down_proj.weight": source.sliced(f"{prefix}.fc2.weight", (width, inner)),
            "down_proj.bias": source.sliced(f"{prefix}.fc2.bias", (width,)),
        }


def _filter(source: DenseSource, config: MoEDecoderConfig, prefix: str) -> dict[str, LazyTensor]:
    """The tensors of one HyenaFilter by its own names."""
    lags, features, width = config.hyena_lags, config.hyena_filter_embedding, config.hyena_filter_width
    channels = (config.hyena_order - 1) * config.hidden_size
    state: dict[str, LazyTensor] = {"skip": source.sliced(f"{prefix}.{_FILTER}.bias", (channels,))}
    # Linear layers and sines take turns.
    linears = config.hyena_filter_layers + 1
    for i in range(linears):
        shape = (width, width if i else features)
        state[f"hidden.{i}.weight"] = source.sliced(f"{prefix}.{_NETWORK}.{2 * i}.weight", shape)
        state[f"hidden.{i}.bias"] = source.sliced(f"{prefix}.{_NETWORK}.{2 * i}.bias", (width,))
    state["out.weight"] = source.sliced(f"{prefix}.{_NETWORK}.{2 * linears}.weight", (channels, width))
    state["frequency"] = _frequency(source, config, f"{prefix}.{_NETWORK}", linears)
    if config.hyena_filter_learned_features:
        # The features are stored as learnt; ours are the formula and an offset, which half precision does not blur.
        stored = source.sliced(f"{prefix}.{_FILTER}.pos_emb.z", (1, lags, features))
        lag_L = torch.arange(lags, dtype=torch.float32)

        def offset(z_1LE: torch.Tensor) -> torch.Tensor:
            return z_1LE[0].float() - lag_features(lag_L, lags, features)

        state["feature_offset"] = Computed(stored, (lags, features), offset)
    decays = f"{prefix}.{_FILTER}.modulation.deltas"
    if source.has(decays):
        stored_decays = source.sliced(decays, (1, 1, channels)).read().flatten().abs().float()
        expected = window_decays(channels, stored_decays)
        if stored_decays.shape == expected.shape and not torch.allclose(stored_decays, expected, rtol=1e-2):
            source.misfit(f"{decays} that are not those of HyenaDNA, which is all that this family computes")
    return state


def _frequency(source: DenseSource, config: MoEDecoderConfig, network: str, sines: int) -> LazyTensor:
    """One module serves as all sines, and safetensors keeps only one of the names of a shared tensor."""
    width = config.hyena_filter_width
    names = [f"{network}.{2 * i + 1}.freq" for i in range(sines)]
    found = source.stored_name(*names)
    if not config.hyena_filter_train_frequency and not source.has(found):
        return Held(torch.full((width,), float(config.hyena_filter_frequency)))
    return Computed(source.sliced(found, (1, width)), (width,), lambda value: value[0])
