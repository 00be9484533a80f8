"""An endless stream of packed blocks that can stop after any block and go on later, exactly."""

import copy
from collections.abc import Iterator
from typing import Any

import datasets
import numpy
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.documents import DocumentEncoder
from moe_hf.training.data.packing import Block, BlockPacker


class PackedStream(torch.utils.data.IterableDataset[Block]):
    """Reads rows, encodes and packs them, draws each next block at random from a small buffer, and begins again.

    `datasets` can resume its own stream, but not the rows in its shuffle buffer; here the buffer holds finished blocks
    and is part of the state, as are the open blocks of the packer.

    Args:
        rows: the rows to read, in their order; one column that `encoder` understands.
        encoder: makes documents of rows.
        packer: makes blocks of documents; must be empty.
        shuffle_buffer: number of blocks among which the next one is drawn; 1 keeps the order.
        seed: of the draws.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        encoder: DocumentEncoder,
        packer: BlockPacker,
        shuffle_buffer: int,
        seed: int,
    ) -> None:
        self.rows = rows
        self.encoder = encoder
        self.packer = packer
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self._passes, self._row = 0, 0
        self._buffer: list[Block] = []
        # By name, since its state is saved: numpy may make another generator the default.
        self._random = numpy.random.Generator(numpy.random.PCG64(seed))
        self._start = self.state_dict()

    def __iter__(self) -> Iterator[Block]:
        """Blocks without end, from the loaded state or the beginning."""
        self._restore(self._start)
        source = iter(self.rows)
        while True:
            while len(self._buffer) < self.shuffle_buffer or not self._buffer:
                row = next(source, None)
                if row is None:
                    self._end_pass()
                    source = iter(self.rows)
                else:
                    self._take(row)
            index = int(self._random.integers(len(self._buffer)))
            self._buffer[index], self._buffer[-1] = self._buffer[-1], self._buffer[index]
            # Popped before the yield: while the reader holds the block, `state_dict` already lies behind it.
            yield self._buffer.pop()

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: plain numbers, lists and dicts that JSON can hold."""
        # A copy: the lists go on changing with the stream.
        return copy.deepcopy(
            {
                "passes": self._passes,
                "row": self._row,
                "rows": self.rows.state_dict() if self._row else {},
                "packer": self.packer.state_dict(),
                "buffer": self._buffer,
                "random": self._random.bit_generator.state,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where `state_dict` was called."""
        self._start = copy.deepcopy(state)
        self._restore(self._start)

    def _take(self, row: dict[str, Any]) -> None:
        encoded = self.encoder({name: [value] for name, value in row.items()}, [self._row])
        self._row += 1
        self._buffer += self.packer.add(encoded["input_ids"][0], encoded["labels"][0])

    def _end_pass(self) -> None:
        self._buffer += self.packer.flush()
        if not self._buffer:
            raise ConfigError("the streamed data gave no block to train on; is it empty after the held-out documents?")
        self._begin_pass(self._passes + 1, row=0, source_state={})

    def _restore(self, state: dict[str, Any]) -> None:
        # Copied again, since another iteration begins at the same place.
        state = copy.deepcopy(state)
        self._buffer = state["buffer"]
        self._random.bit_generator.state = state["random"]
        self.packer.load_state_dict(state["packer"])
        self._begin_pass(state["passes"], state["row"], state["rows"])

    def _begin_pass(self, passes: int, row: int, source_state: dict[str, Any]) -> None:
        self._passes, self._row = passes, row
        # Another epoch also means another order of the files, where there are several.
        self.rows.set_epoch(passes)
        self.rows.load_state_dict(source_state)
