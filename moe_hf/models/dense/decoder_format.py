"""Reads any dense decoder: its embedding, layers, last norm and head become those of a Mixture of Experts, lazily."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.validation import POSITION_EMBEDDING_TYPES
from moe_hf.models.dense.format import DenseFormat
from moe_hf.models.dense.kept_logits import warn_if_logits_change
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.dense.source import DenseSource
from moe_hf.models.dense.upcycled_ffn import ffn_from_dense, fresh_ffn


class DecoderFormat(DenseFormat):
    """A dense decoder of equal layers; a format says only what is its own: names, fields, the tensors of a layer.

    Attributes:
        prefix: some checkpoints put it before the names, others do not.
        layers: name of the list of layers.
        marks: names within a layer; a checkpoint that has all of them is of this architecture.
        ignored: finds the names of tensors that nobody needs to read, such as masks.
        embedding: names that the embedding may have.
        last_norm: name of the norm behind the last layer.
        head: name of the language-model head.
        may_untie_head: whether its files may hold a head of their own although `config.json` says that it is tied.
        mixer: that every layer has.
        mixing: what an error calls such layers.
        positions: values of `position_embedding_type` with which the weights compute what they did.
        needs: other fields of the configuration, `norm_type` among them, each with the only value that fits.
        ffn_prefix: of the names of an FFN within a layer of the model to build.
    """

    prefix: ClassVar[str]
    layers: ClassVar[str] = "layers"
    marks: ClassVar[tuple[str, ...]]
    ignored: ClassVar[re.Pattern | None] = None
    embedding: ClassVar[tuple[str, ...]] = ("embeddings.weight",)
    last_norm: ClassVar[str] = "norm"
    head: ClassVar[str] = "lm_head.weight"
    may_untie_head: ClassVar[bool] = False
    mixer: ClassVar[str]
    mixing: ClassVar[str]
    positions: ClassVar[tuple[str, ...]] = POSITION_EMBEDDING_TYPES
    needs: ClassVar[dict[str, Any]] = {
        "embedding_norm": False,
        "mlp_token_shift": "none",
        "mlp_placement": "each",
        "norm_placement": "before",
    }
    ffn_prefix: ClassVar[str] = "mlp."

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of this architecture."""
        names = list(names)
        # A name may end like a mark and be another list's: "players.0." is no layer.
        layer = rf"(^|\.){re.escape(self.layers)}\.\d+\."
        return all(any(re.search(f"{layer}{re.escape(mark)}$", name) for name in names) for mark in self.marks)

    def state_dict(
        self,
        slices: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """As in DenseFormat."""
        source = DenseSource(slices, self.name, self.prefix, self.ignored)
        # Noted, not raised: `raise_if_incomplete` names all that is wrong in one error.
        self._check(source, config)
        embedding = source.sliced(source.stored_name(*self.embedding), (config.vocab_size, config.hidden_size))
        state: dict[str, LazyTensor] = {
            "model.embed_tokens.weight": embedding,
            **self.norm(source, config, "model.norm", self.last_norm),
            **self.outside_layers(source, config),
        }
        for layer in range(config.num_hidden_layers):
            parts = self.layer(source, config, layer)
            if self.has_ffn:
                parts |= ffn_from_dense(self.ffn(source, config, layer), config, layer, dtype, self.ffn_prefix)
            else:
                parts |= fresh_ffn(config, layer, dtype)
            state |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
        # Copying the embedding over a head that was trained by itself would lose it.
        was_tied = head_was_tied and not (self.may_untie_head and source.has(self.head))
        state |= source.head(self.head, embedding, config, with_head, was_tied)
        if "score.weight" in slices:
            state["score.weight"] = source.sliced("score.weight")
        source.raise_if_incomplete()
        if self.has_ffn:
            warn_if_logits_change(config)
        return state

    @abstractmethod
    def layer(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> dict[str, LazyTensor]:
        """The tensors of a layer of the model to build, without its FFN's, by their names within the layer."""

    def ffn(self, source: DenseSource, config: MoEDecoderConfig, layer: int) -> Mapping[str, LazyTensor]:
        """The tensors of a layer's dense FFN, by the names that `ffn_from_dense` takes."""
        return {}

    def outside_layers(self, source: DenseSource, config: MoEDecoderConfig) -> dict[str, LazyTensor]:
        """What is outside the layers beside the embedding, the last norm and the head."""
        return {}

    def norm(self, source: DenseSource, config: MoEDecoderConfig, ours: str, theirs: str) -> dict[str, LazyTensor]:
        """Weight, and bias where the format's norms have one, of a norm of the residual stream, by our name."""
        # By the format's norm, not the configuration's: a bias that the file never had would be reported as missing,
        # and that hides the field which is wrong.
        kinds = ("weight", "bias") if self.needs["norm_type"] == "layer" else ("weight",)
        return {f"{ours}.{kind}": source.sliced(f"{theirs}.{kind}", (config.hidden_size,)) for kind in kinds}

    def check_layers(self, source: DenseSource, config: MoEDecoderConfig) -> None:
        """Note what the configuration says of the layers that does not fit those of the dense model."""
        stored = source.count_layers(self.layers)
        if stored > config.num_hidden_layers:
            source.misfit(f"{stored} layers, but num_hidden_layers={config.num_hidden_layers}")
        if set(config.mixer_of_layer) != {self.mixer}:
            source.misfit(f"{self.mixing}, but mixer={config.mixer!r}, mlp_placement={config.mlp_placement!r}")

    def _check(self, source: DenseSource, config: MoEDecoderConfig) -> None:
        """Note every field of the configuration with which the weights would not compute what they did."""
        self.check_layers(source, config)
        if config.position_embedding_type not in self.positions:
            kind = "learned" if "learned" in self.positions else "no" if self.positions == ("none",) else "no learned"
            source.misfit(f"{kind} positions, but position_embedding_type is {config.position_embedding_type!r}")
        source.require(config, **self.needs)
        if self.has_ffn and config.sparse_layers and not _cuts_evenly(config):
            source.misfit(f"FFNs of width {config.ffn_width}, but moe_intermediate_size={config.expert_width}")


def _cuts_evenly(config: MoEDecoderConfig) -> bool:
    """Whether experts are whole FFNs, or slices of which a token visits those of whole FFNs."""
    granularity, rest = divmod(config.ffn_width, config.expert_width)
    if granularity == 1 and not rest:
        return True
    # Slices of one FFN are chosen together where only their scores, which are equal, decide.
    by_score = {*config.router_of_sparse_layer} <= {"top_k", "sigmoid_bias"} and config.router_num_groups == 1
    whole = config.num_experts % granularity == config.num_experts_per_tok % granularity == 0
    return by_score and whole and granularity > 1 and not rest
