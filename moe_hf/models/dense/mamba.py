"""Turns a dense Mamba's or Mamba-2's state dict into that of a Mixture of Experts: the same mixers, and silent FFNs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.mixers.mamba import make_mamba
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.dense.source import DenseFormat, DenseSource
from moe_hf.models.dense.upcycled_ffn import fresh_ffn


class _Ones(LazyTensor):
    def __init__(self, size: int) -> None:
        super().__init__((size,), "F32")

    def read(self) -> torch.Tensor:
        return torch.ones(self.shape)


class _DenseMamba(DenseFormat):
    # A parameter of each mixer that the other version does not have.
    mark: ClassVar[str]
    fixed_fields: ClassVar[tuple[str, ...]] = (
        "layer_norm_epsilon",
        "mamba_bcdt_norm_eps",
        "mamba_num_groups",
    )

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of this version."""
        names = list(names)
        # Models of this package name their mixers alike, but not their norms.
        dense = any(re.search(r"(^|\.)layers\.\d+\.norm\.weight$", name) for name in names)
        return dense and any(name.endswith(f".mixer.{self.mark}") for name in names)

    def state_dict(
        self,
        dense: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """As in DenseFormat. The FFNs, which a dense Mamba does not have, are fresh, and their output is zero."""
        source = DenseSource(dense, self.name, prefix="backbone.")
        matrix, vector = (config.vocab_size, config.hidden_size), (config.hidden_size,)
        # The oldest checkpoints have the singular.
        embedding = source.sliced(f"embedding{'' if source.has('embedding.weight') else 's'}.weight", matrix)
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": embedding,
            "model.norm.weight": source.sliced("norm_f.weight", vector),
        }
        shapes = _mixer_shapes(config)
        for theirs, ours in enumerate(_layers_with_mixer(source, dense, config)):
            state[f"model.layers.{ours}.input_layernorm.weight"] = source.sliced(f"layers.{theirs}.norm.weight", vector)
            for name, shape in shapes.items():
                state[f"model.layers.{ours}.mixer.{name}"] = source.sliced(f"layers.{theirs}.mixer.{name}", shape)
        for layer, kind in enumerate(config.mlp_layer_types or []):
            if kind != "none":
                state[f"model.layers.{layer}.post_attention_layernorm.weight"] = _Ones(config.hidden_size)
                state |= {f"model.layers.{layer}.{name}": x for name, x in fresh_ffn(config, layer, dtype).items()}
        state |= source.head("lm_head.weight", embedding, config, with_head, head_was_tied)
        source.raise_if_incomplete()
        return state


class DenseMamba1(_DenseMamba):
    """transformers' `MambaForCausalLM` and `FalconMambaForCausalLM`, with or without the "backbone." prefix.

    >>> DenseMamba1().recognises(["backbone.layers.0.norm.weight", "backbone.layers.0.mixer.x_proj.weight"])
    True
    """

    name = "dense Mamba"
    mark = "x_proj.weight"


class DenseMamba2(_DenseMamba):
    """transformers' `Mamba2ForCausalLM`, with or without the "backbone." prefix.

    >>> DenseMamba2().recognises(["backbone.layers.0.norm.weight", "backbone.layers.0.mixer.dt_bias"])
    True
    """

    name = "dense Mamba-2"
    head_is_tied = False
    mark = "dt_bias"


def _layers_with_mixer(source: DenseSource, dense: Mapping[str, Any], config: MoEDecoderConfig) -> list[int]:
    """The layers that take the dense model's, in their order."""
    mixers = config.mixer_of_layer
    others = {*mixers} - {"mamba", "none"}
    if others:
        source.misfit(f"Mamba's mixers, but mixer asks for {', '.join(sorted(others))} as well")
    if config.norm_type != "rms":
        source.misfit(f"RMS norms, but norm_type={config.norm_type!r}")
    if config.position_embedding_type == "learned":
        source.misfit("no positions, but position_embedding_type='learned'")
    source.require(config, embedding_norm=False, mlp_token_shift="none")
    ours = [layer for layer, mixer in enumerate(mixers) if mixer == "mamba"]
    count = len({match[1] for name in dense if (match := re.search(r"(?:^|\.)layers\.(\d+)\.mixer\.", name))})
    if count > len(ours):
        hint = f"; {2 * count} are needed" if config.mlp_placement == "interleaved" else ""
        source.misfit(
            f"{count} mixers, but there is place for {len(ours)} with num_hidden_layers={config.num_hidden_layers} and "
            f"mlp_placement={config.mlp_placement!r}{hint}"
        )
    return ours


def _mixer_shapes(config: MoEDecoderConfig) -> dict[str, tuple[int, ...]]:
    # The parameters have the same names in both models.
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in make_mamba(config, layer_idx=0).state_dict().items()}
