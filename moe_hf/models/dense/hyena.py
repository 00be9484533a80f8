"""Turns a HyenaDNA's state dict into that of a Mixture of Experts, lazily: nothing large is read before it is needed.

Shapes: L lags, E features of a lag, W width of the filter's network.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.hyena_filter import lag_features, window_decays
from moe_hf.models.dense.lazy_tensors import Held, LazyTensor
from moe_hf.models.dense.source import DenseFormat, DenseSource
from moe_hf.models.dense.upcycle import warn_if_logits_change
from moe_hf.models.dense.upcycled_ffn import ffn_from_dense

_ANY_FILTER = re.compile(r"(^|\.)backbone\.layers\.\d+\.mixer\.filter_fn\.bias$")
# The positions, which follow from the length; and the further names of the sines that all share one tensor.
_UNUSED = re.compile(r"\.filter_fn\.(pos_emb\.t|implicit_filter\.\d+\.freq)$")
_FILTER = "mixer.filter_fn"
_NETWORK = f"{_FILTER}.implicit_filter"


class HyenaDNA(DenseFormat):
    """LongSafari's HyenaDNA (Nguyen et al. 2023) as on the Hub, with or without its "hyena." prefix."""

    name = "dense HyenaDNA"
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "hidden_act",
        "hyena_filter_frequency",
        "hyena_filter_shift",
        "hyena_filter_learned_features",
    )

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of a HyenaDNA.

        >>> HyenaDNA().recognises(["hyena.backbone.layers.0.mixer.filter_fn.bias"])
        True
        """
        return any(_ANY_FILTER.search(name) for name in names)

    def state_dict(
        self,
        dense: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """As in DenseFormat."""
        source = DenseSource(dense, self.name, prefix="hyena.", ignored=_UNUSED)
        _check_shape(source, dense, config)
        shape = (config.vocab_size, config.hidden_size)
        embedding = source.sliced("backbone.embeddings.word_embeddings.weight", shape)
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": embedding,
            "model.norm.weight": source.sliced("backbone.ln_f.weight"),
            "model.norm.bias": source.sliced("backbone.ln_f.bias"),
        }
        for layer in range(config.num_hidden_layers):
            parts = _layer(source, config, layer, dtype)
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
        # Its files may hold a head of its own although config.json says nothing of it.
        was_tied = head_was_tied and not source.has("lm_head.weight")
        state |= source.head("lm_head.weight", embedding, config, with_head, was_tied)
        if "score.weight" in dense:
            state["score.weight"] = source.sliced("score.weight")
        source.raise_if_incomplete()
        warn_if_logits_change(config)
        return state


class _Computed(LazyTensor):
    """What a function makes of another lazy tensor."""

    def __init__(
        self, original: LazyTensor, shape: tuple[int, ...], function: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(shape, original.get_dtype())
        self._original = original
        self._function = function

    def read(self) -> torch.Tensor:
        return self._function(self._original.read()).contiguous()


def _check_shape(source: DenseSource, dense: Mapping[str, Any], config: MoEDecoderConfig) -> None:
    layers = {int(match[1]) for name in dense if (match := re.search(r"backbone\.layers\.(\d+)\.", name))}
    if len(layers) > config.num_hidden_layers:
        source.misfit(f"{len(layers)} layers, but num_hidden_layers={config.num_hidden_layers}")
    if set(config.mixer_of_layer) != {"hyena"} or config.mlp_placement != "each":
        source.misfit(f"Hyena operators in all layers, but mixer is {config.mixer!r}")
    if config.position_embedding_type != "none":
        source.misfit(f"no positions, but position_embedding_type is {config.position_embedding_type!r}")
    source.require(config, norm_type="layer", mlp_gated=False, mlp_bias=True)
    source.require(config, embedding_norm=False, mlp_token_shift="none")
    inner = config.intermediate_size
    if config.sparse_layers and config.moe_intermediate_size != inner:
        source.misfit(f"FFNs of width {inner}, but moe_intermediate_size={config.moe_intermediate_size}")


def _layer(
    source: DenseSource, config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    prefix, width, inner = f"backbone.layers.{layer}", config.hidden_size, config.ffn_width
    channels, taps = (config.hyena_order + 1) * width, config.hyena_short_conv
    state: dict[str, LazyTensor] = {}
    for ours, theirs in (("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2")):
        for kind in ("weight", "bias"):
            state[f"{ours}.{kind}"] = source.sliced(f"{prefix}.{theirs}.{kind}", (width,))
    for name, rows in (("in_proj", channels), ("out_proj", width)):
        state[f"mixer.{name}.weight"] = source.sliced(f"{prefix}.mixer.{name}.weight", (rows, width))
        state[f"mixer.{name}.bias"] = source.sliced(f"{prefix}.mixer.{name}.bias", (rows,))
    taps_of_conv = source.sliced(f"{prefix}.mixer.short_filter.weight", (channels, 1, taps))
    state["mixer.short_conv_weight"] = _Computed(taps_of_conv, (channels, taps), lambda value: value[:, 0])
    state["mixer.short_conv_bias"] = source.sliced(f"{prefix}.mixer.short_filter.bias", (channels,))
    state |= {f"mixer.filter.{name}": value for name, value in _filter(source, config, prefix).items()}
    ffn = {
        "up_proj.weight": source.sliced(f"{prefix}.mlp.fc1.weight", (inner, width)),
        "up_proj.bias": source.sliced(f"{prefix}.mlp.fc1.bias", (inner,)),
        "down_proj.weight": source.sliced(f"{prefix}.mlp.fc2.weight", (width, inner)),
        "down_proj.bias": source.sliced(f"{prefix}.mlp.fc2.bias", (width,)),
    }
    return state | ffn_from_dense(ffn, config, layer, dtype)


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

        state["feature_offset"] = _Computed(stored, (lags, features), offset)
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
    found = next((name for name in names if source.has(name)), names[0])
    if not config.hyena_filter_train_frequency and not source.has(found):
        return Held(torch.full((width,), float(config.hyena_filter_frequency)))
    return _Computed(source.sliced(found, (1, width)), (width,), lambda value: value[0])
