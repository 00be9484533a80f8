"""Packs documents of any length into blocks of one length."""

from typing import Any, TypeAlias

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.documents import IGNORED

Block: TypeAlias = dict[str, list[int]]
"""`input_ids`, `labels` and, where documents are kept apart, `position_ids`: lists of `context_length` numbers."""


class BlockPacker:
    """Packs documents in the order in which they come; the same documents always give the same blocks.

    Args:
        context_length: tokens per block.
        pad_token_id: fills what stays free at a block's end; its labels are ignored.
        whole: keep each document in one block, the fullest of `num_open` blocks in which it fits (best fit); a longer
            one is split first. Otherwise documents are laid end to end and cut where a block is full, so that only the
            last block has padding.
        restart_positions: give `position_ids` that begin anew with each document, by which the model keeps documents
            apart. The first token of each is then no label, since nothing before it is seen.
        num_open: blocks kept open when `whole`.
    """

    def __init__(
        self, context_length: int, pad_token_id: int, whole: bool, restart_positions: bool, num_open: int = 16
    ) -> None:
        if context_length < 2:
            raise ConfigError(f"context_length must be at least 2 tokens, got {context_length}")
        self.context_length = context_length
        self.pad_token_id = pad_token_id
        self.whole = whole
        self.restart_positions = restart_positions
        self.num_open = num_open
        self._open: list[Block] = []

    def add(self, input_ids: list[int], labels: list[int]) -> list[Block]:
        """The blocks that this document completes."""
        done: list[Block] = []
        start = 0
        while start < len(input_ids):
            stop = start + self._room(len(input_ids) - start, done)
            self._place(input_ids[start:stop], labels[start:stop], done)
            start = stop
        return done

    def flush(self) -> list[Block]:
        """The blocks still open, padded; the packer is empty afterwards."""
        done = [self._padded(block) for block in self._open]
        self._open = []
        return done

    def state_dict(self) -> dict[str, Any]:
        """The open blocks, as plain lists."""
        return {"open": [{name: list(values) for name, values in block.items()} for block in self._open]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the open blocks of `state_dict()`."""
        self._open = [{name: list(values) for name, values in block.items()} for block in state["open"]]

    def _free(self, block: Block) -> int:
        return self.context_length - len(block["input_ids"])

    def _room(self, length: int, done: list[Block]) -> int:
        """Tokens of a document's rest that go into the block that stands last in `_open` when this returns."""
        if not self.whole:
            if not self._open:
                self._open.append(self._empty())
            return min(length, self._free(self._open[-1]))
        length = min(length, self.context_length)
        fitting = [i for i, block in enumerate(self._open) if self._free(block) >= length]
        if fitting:
            self._open.append(self._open.pop(min(fitting, key=lambda i: self._free(self._open[i]))))
            return length
        if len(self._open) == self.num_open:
            # The fullest is given up: it leaves the least padding.
            fullest = min(range(len(self._open)), key=lambda i: self._free(self._open[i]))
            done.append(self._padded(self._open.pop(fullest)))
        self._open.append(self._empty())
        return length

    def _place(self, input_ids: list[int], labels: list[int], done: list[Block]) -> None:
        block = self._open[-1]
        block["input_ids"] += input_ids
        if self.restart_positions:
            block["labels"] += [IGNORED, *labels[1:]]
            block["position_ids"] += range(len(input_ids))
        else:
            block["labels"] += labels
        if not self._free(block):
            done.append(self._open.pop())

    def _padded(self, block: Block) -> Block:
        free = self._free(block)
        block["input_ids"] += [self.pad_token_id] * free
        block["labels"] += [IGNORED] * free
        if self.restart_positions:
            # From 0 on: padding is a document of its own, which sees no real token.
            block["position_ids"] += range(free)
        return block

    def _empty(self) -> Block:
        names = ("input_ids", "labels", "position_ids") if self.restart_positions else ("input_ids", "labels")
        return {name: [] for name in names}
