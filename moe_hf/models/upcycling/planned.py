"""What is known of a model to write: everything but the numbers themselves."""

from typing import NamedTuple

from transformers import PreTrainedConfig

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.lazy_tensors import LazyTensor


class ParameterCounts(NamedTuple):
    """How many parameters there are in all, that one token meets, and in the source."""

    total: int
    active: int
    source: int


class PlannedModel(NamedTuple):
    """A model to write.

    Attributes:
        config: its `config.json`.
        state: its tensors by their names in the files.
        wanted: how many experts were asked for, where, and how they are made.
        counts: of its parameters.
        changes: why it does not give the dense model's logits; empty where it does.
        origin: what was made of what, as it stands before the name of the source.
    """

    config: PreTrainedConfig
    state: dict[str, LazyTensor]
    wanted: MoEDecoderConfig
    counts: ParameterCounts
    changes: list[str]
    origin: str = "A Mixture of Experts upcycled from the dense model"
