"""What a layer is told about a call, beside the vectors of its tokens.

Shapes: B batch, S positions of this call, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import Cache

from moe_hf.layers.attention.positions import Rotation


class LayerInputs(NamedTuple):
    """One for all layers of a call, made by the decoder; mixers and feed-forward networks read what they need of it.

    Attributes:
        token_ids: (B, S) vocabulary ids for routers that look at them; None when only embeddings were given.
        attention_mask: what the attention function in use takes: None, (B, 1, S, keys), a block mask or (B, keys).
        padding_mask: (B, S), nonzero at real tokens of this call; None means that all are.
        document_starts: (B, S), True where a new document begins; None means that none does.
        position_ids: (B or 1, S).
        rotation: cosines and sines of the positions; None unless positions are rotary.
        cache: state of earlier calls, read and written (`moe_hf.layers.caches.states.states_of`).
        shared_values: see `shared`; None shares nothing.
        first_value: (B, S, D), what an earlier layer gave for the later ones (`MixerOutput`).
        window_mask: as `attention_mask`, for layers with a sliding window.
        attention_options: handed down to the attention function.
    """

    # A tuple, since what wraps a layer (dispatching, offloading, sharding, recomputing) takes tuples apart, moves the
    # tensors in them and puts them together again. What is no tensor, such as the cache, it hands on as it is.
    token_ids: torch.Tensor | None = None
    attention_mask: Any = None
    padding_mask: torch.Tensor | None = None
    document_starts: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    rotation: Rotation | None = None
    cache: Cache | None = None
    shared_values: dict[str, Any] | None = None
    first_value: torch.Tensor | None = None
    window_mask: Any = None
    attention_options: Mapping[str, Any] = MappingProxyType({})

    @property
    def layout(self) -> dict[str, torch.Tensor | None]:
        """Padding and documents, as the operations along a sequence take them."""
        return {"mask_BS": self.padding_mask, "starts_BS": self.document_starts}

    @property
    def mask_of_step(self) -> torch.Tensor | None:
        """(B,), the padding mask of a call of one position, as the operations for a single step take it."""
        return None if self.padding_mask is None else self.padding_mask[:, 0]

    def shared(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives: tensors, computed by the first layer of a call that asks for them by this name.

        Hooks may hand each layer a copy of the values, so that what is not there is computed again.
        """
        # A compiler finds what layers have in common by itself, and may not follow a change of the dict.
        if self.shared_values is None or torch.compiler.is_compiling():
            return compute()
        if name not in self.shared_values:
            self.shared_values[name] = compute()
        return self.shared_values[name]

    def stretches(self, x_BSD: torch.Tensor, length: int | None) -> Iterator[tuple[torch.Tensor, "LayerInputs"]]:
        """Tokens in stretches of `length` positions that follow each other, each with what is to be known of it.

        For mixers that carry a state along: the mask of attention, which speaks of all keys, stays whole.

        Args:
            x_BSD: the tokens.
            length: positions of a stretch, the last one excepted; None leaves all in one.
        """
        if length is None or x_BSD.shape[1] <= length:
            yield x_BSD, self
            return
        for first in range(0, x_BSD.shape[1], length):
            yield x_BSD[:, first : first + length], self._between(slice(first, first + length))

    def _between(self, part: slice) -> "LayerInputs":
        def cut(x_BS: torch.Tensor | None) -> Any:
            return None if x_BS is None else x_BS[:, part]

        return self._replace(
            token_ids=cut(self.token_ids),
            padding_mask=cut(self.padding_mask),
            document_starts=cut(self.document_starts),
            position_ids=cut(self.position_ids),
            rotation=None if self.rotation is None else Rotation(*map(cut, self.rotation)),
            first_value=cut(self.first_value),
        )


PLAIN = LayerInputs()
"""One document per row, no padding, no cache."""
