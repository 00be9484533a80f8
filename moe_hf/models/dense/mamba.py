"""Reads a dense Mamba or Mamba-2: the same mixers, and silent FFNs."""

from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.mixers import MIXERS
from moe_hf.models.dense.decoder_format import DecoderFormat
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.dense.source import DenseSource


class _DenseMamba(DecoderFormat):
    fixed_fields: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon", "mamba_bcdt_norm_eps", "mamba_num_groups")
    has_ffn = False
    prefix = "backbone."
    # The oldest checkpoints have the singular.
    embedding = ("embeddings.weight", "embedding.weight")
    last_norm = "norm_f"
    mixer = "mamba"
    positions = ("none", "rotary")
    needs: ClassVar[dict[str, Any]] = {"norm_type": "rms", "embedding_norm": False, "mlp_token_shift": "none"}

    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """The mixer, if the layer has one; the dense model's mixers keep their order."""
        mixers = config.mixer_of_layer
        if mixers[layer] != "mamba":
            return {}
        # Interleaved layers of FFNs alone are counted in this model, and not in the dense one.
        theirs = f"layers.{mixers[:layer].count('mamba')}"
        state = self.norm(source, config, "input_layernorm", f"{theirs}.norm")
        # The parameters have the same names in both models.
        with torch.device("meta"):
            shapes = {name: tuple(x.shape) for name, x in MIXERS["mamba"](config, layer).state_dict().items()}
        return state | {f"mixer.{x}": source.sliced(f"{theirs}.mixer.{x}", shape) for x, shape in shapes.items()}

    def check_layers(self, source: DenseSource, config: MoEDecoderConfig) -> None:
        """Layers without a mixer may stand between those of the dense model."""
        others = {*config.mixer_of_layer} - {"mamba", "none"}
        if others:
            source.misfit(f"Mamba's mixers, but mixer asks for {', '.join(sorted(others))} as well")
        stored, places = source.count_layers(self.layers), config.mixer_of_layer.count("mamba")
        if stored > places:
            hint = f"; {2 * stored} are needed" if config.mlp_placement == "interleaved" else ""
            source.misfit(
                f"{stored} mixers, but there is place for {places} with num_hidden_layers={config.num_hidden_layers} "
                f"and mlp_placement={config.mlp_placement!r}{hint}"
            )


class DenseMamba1(_DenseMamba):
    """transformers' `MambaForCausalLM` and `FalconMambaForCausalLM`, with or without the "backbone." prefix.

    >>> DenseMamba1().recognises(["backbone.layers.0.norm.weight", "backbone.layers.0.mixer.x_proj.weight"])
    True
    """

    name = "dense Mamba"
    model_types = ("mamba", "falcon_mamba")
    # Models of this package name their mixers alike, but not their norms.
    marks = ("norm.weight", "mixer.x_proj.weight")


class DenseMamba2(_DenseMamba):
    """transformers' `Mamba2ForCausalLM`, with or without the "backbone." prefix.

    >>> DenseMamba2().recognises(["backbone.layers.0.norm.weight", "backbone.layers.0.mixer.dt_bias"])
    True
    """

    name = "dense Mamba-2"
    model_types = ("mamba2",)
    head_is_tied = False
    marks = ("norm.weight", "mixer.dt_bias")
