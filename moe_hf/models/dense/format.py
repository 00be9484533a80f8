"""What a dense format is: the checkpoint of one dense architecture, as a state dict of this package."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.lazy_tensors import LazyTensor


class DenseFormat(ABC):
    """How the checkpoint of one dense architecture becomes the state dict of a family of this package.

    Attributes:
        name: what a reader calls it, as it stands behind "a".
        model_types: how its `config.json` may name it.
        head_is_tied: whether its head is its embedding's matrix where its `config.json` does not say.
        tied_types: those of `model_types` whose head is so, whatever `head_is_tied` says of the others.
        fixed_fields: fields of the configuration that change what the dense weights compute, but not their shapes.
        has_ffn: whether it has FFNs; where not, those of the model to build are fresh, and their output is zero.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    head_is_tied: ClassVar[bool] = True
    tied_types: ClassVar[tuple[str, ...]] = ()
    fixed_fields: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon",)
    has_ffn: ClassVar[bool] = True

    @abstractmethod
    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of this architecture."""

    @abstractmethod
    def state_dict(
        self,
        slices: Mapping[str, Any],
        config: MoEDecoderConfig,
        with_head: bool = True,
        head_was_tied: bool = False,
        dtype: torch.dtype | None = None,
    ) -> dict[str, LazyTensor]:
        """The state dict of the family's causal LM, each tensor computed from `slices` when it is read.

        Args:
            slices: the dense model's tensors, by name, unread.
            config: the model to build.
            with_head: whether the language-model head is needed; where it is tied to the embedding it is never stored.
            head_was_tied: whether the dense model's head is its embedding; an untied head starts as its copy then.
            dtype: type of the experts' stacks; None is that of the dense weights. The loader casts what is left.

        Raises:
            CheckpointError: tensors are missing, left over, or do not fit the configuration.
        """
