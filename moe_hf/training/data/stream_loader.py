"""Batches of an endless or repeated stream whose position can be saved and found again without replaying."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from transformers.trainer_utils import has_length

from moe_hf.base.errors import ConfigError


@runtime_checkable
class ResumableStream(Protocol):
    """Data read in order that can say where it stands: `datasets.IterableDataset`, `PackedStream`, or your own.

    `state_dict`, called after an example was taken, describes the place after it in plain Python values and tensors.
    `load_state_dict` lets the next iteration begin there. Iterating after the end begins anew.
    """

    def __iter__(self) -> Iterator[Any]:
        """Examples in order."""

    def state_dict(self) -> dict[str, Any]:
        """The place after the last example taken."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next iteration there."""


@runtime_checkable
class HasEpochs(Protocol):
    """Data whose order depends on the number of the pass."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be pass number `epoch`, from 0."""


def is_resumable_stream(dataset: object) -> bool:
    """Whether a data set is an iterable one of unknown length that can say where it stands."""
    is_iterable = isinstance(dataset, torch.utils.data.IterableDataset)
    # Where a length is known, Trainer counts epochs and skips by itself.
    return is_iterable and isinstance(dataset, ResumableStream) and not has_length(dataset)


class StreamLoader:
    """Batches without end from a stream; a stream that ends is begun again, and a batch may reach over the end.

    It reads nothing ahead. Whatever batches the caller has taken, `state_dict` is the place after them; a
    `torch.utils.data.DataLoader`, or accelerate's wrapper, is always a batch or more further on.

    Args:
        dataset: the stream. All processes read all of it, and must see the same order.
        batch_size: examples per batch and process.
        collate: makes a batch of a list of examples.
        rank, world_size: of all examples for one step of all processes, this process takes its own share.
    """

    def __init__(
        self, dataset: Any, batch_size: int, collate: Callable[[list[Any]], Any], rank: int = 0, world_size: int = 1
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate = collate
        self.rank, self.world_size = rank, world_size
        self._passes, self._skip = 0, 0

    def __iter__(self) -> Iterator[Any]:
        """Batches from the loaded place or the beginning.

        Raises:
            ConfigError: the stream holds no example.
        """
        examples = self._examples()
        for _ in itertools.repeat(None, self._skip):
            # Drained: islice by itself reads nothing.
            list(itertools.islice(examples, self.batch_size * self.world_size))
        first = self.rank * self.batch_size
        while True:
            group = list(itertools.islice(examples, self.batch_size * self.world_size))
            yield self.collate(group[first : first + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch taken."""
        return {"passes": self._passes, "stream": self.dataset.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where `state_dict` was called."""
        self._passes = state["passes"]
        self._begin_pass()
        self.dataset.load_state_dict(state["stream"])

    def skip(self, num_batches: int) -> None:
        """Let the next iteration read and drop so many batches: the slow way, for a place that nobody saved."""
        self._skip = num_batches

    def _begin_pass(self) -> None:
        if isinstance(self.dataset, HasEpochs):
            self.dataset.set_epoch(self._passes)

    def _examples(self) -> Iterator[Any]:
        # A place at the very end of a pass gives nothing once; two empty passes are an empty stream.
        empty_passes = 0
        while empty_passes < 2:
            empty_passes += 1
            for example in self.dataset:
                empty_passes = 0
                yield example
            self._passes += 1
            self._begin_pass()
        raise ConfigError("the training stream holds no example; check its source and filters")
