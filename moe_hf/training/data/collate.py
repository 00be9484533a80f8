"""Stacks rows of tokens into a batch of tensors, padding on the right where their lengths differ."""

from collections.abc import Mapping, Sequence

import torch

from moe_hf.training.data.documents import IGNORED, prompt_label

_MULTIPLE = 8


class BlockCollator:
    """Makes a batch of rows `{"input_ids", "labels", "position_ids"?}`.

    Rows of one length, as packing gives them, are stacked and get no attention mask: packed documents are told apart by
    `position_ids`. Rows of several lengths are padded to a multiple of 8 and get one. Where labels of prompts are
    among them (`prompt_label`), these become plain labels and the batch gets `answers`, False where they stand.

    Args:
        pad_token_id: stands in `input_ids` where a row has ended; its label is ignored.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Tensors of shape (rows, longest row), int64."""
        batch = self._stacked(rows)
        of_prompt = batch["labels"] < IGNORED
        if of_prompt.any():
            batch["labels"] = torch.where(of_prompt, prompt_label(batch["labels"]), batch["labels"])
            batch["answers"] = ~of_prompt
        return batch

    def _stacked(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        names = [name for name in ("input_ids", "labels", "position_ids") if name in rows[0]]
        if len(set(lengths)) == 1:
            return {name: torch.tensor([list(row[name]) for row in rows]) for name in names}
        width = -(-max(lengths) // _MULTIPLE) * _MULTIPLE
        fill = {"input_ids": self.pad_token_id, "labels": IGNORED, "position_ids": 0}
        batch = {
            name: torch.tensor([[*row[name], *[fill[name]] * (width - len(row[name]))] for row in rows])
            for name in names
        }
        batch["attention_mask"] = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
        return batch
