"""Brings the rows of each expert together, and the experts' results back to their tokens.

Shapes: T tokens, D width, E experts, K experts per token, J = T * K slots, N rows: the slots of expert_TK
that are not to be skipped, sorted by expert.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F


class Chunk(NamedTuple):
    """Rows [start, stop), all of one expert; `is_first` where no rows of it stand before."""

    expert: int
    start: int
    stop: int
    is_first: bool


class ExpertRows(NamedTuple):
    """The N slots that are visited, as indices into the flattened (T, K), in the order of their experts.

    `chunks` covers them in order; `unused` are the experts that have none.
    """

    slot_N: torch.Tensor
    chunks: list[Chunk]
    unused: list[int]


def sort_rows(expert_TK: torch.Tensor, num_experts: int, rows_per_chunk: int) -> ExpertRows:
    """The rows sorted by expert, stable within an expert, cut into chunks of at most `rows_per_chunk`.

    Ids from `num_experts` on mark slots to skip. Reads the E counts back to the host once.
    """
    expert_J = expert_TK.reshape(-1)
    slot_J = expert_J.argsort(stable=True)
    counts = expert_J.bincount(minlength=num_experts)[:num_experts].tolist()
    chunks, unused, start = [], [], 0
    for expert, count in enumerate(counts):
        if count == 0:
            unused.append(expert)
        for first in range(0, count, rows_per_chunk):
            chunks.append(Chunk(expert, start + first, start + min(first + rows_per_chunk, count), first == 0))
        start += count
    return ExpertRows(slot_J[:start], chunks, unused)


def group_chunks(chunks: Sequence[Chunk], rows_per_group: int) -> list[list[Chunk]]:
    """Runs of neighbouring chunks, as long as they have at most `rows_per_group` rows together or are one chunk."""
    groups: list[list[Chunk]] = []
    for chunk in chunks:
        if groups and chunk.stop - groups[-1][0].start <= rows_per_group:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def room_for_rows(slot_N: torch.Tensor, weight_TK: torch.Tensor, like_TD: torch.Tensor) -> torch.Tensor:
    """Uninitialised room for N results of width D; where a slot is skipped, a zero row stands after them."""
    num_rows = len(slot_N)
    any_skipped = num_rows < weight_TK.numel()
    room_ND = like_TD.new_empty(num_rows + any_skipped, like_TD.shape[1])
    room_ND[num_rows:].zero_()
    return room_ND


def combine_rows(y_ND: torch.Tensor, slot_N: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
    """Each token's rows, weighted and added up, (T, D) in the dtype of `y_ND`, which `room_for_rows` made."""
    num_rows = len(slot_N)
    # Skipped slots read the zero row behind the others.
    row_J = slot_N.new_full((weight_TK.numel(),), num_rows)
    row_J[slot_N] = torch.arange(num_rows, device=slot_N.device)
    row_TK = row_J.view(weight_TK.shape)
    weight_TK = weight_TK.to(y_ND.dtype)
    if num_rows < len(row_J):
        # What a skipped slot weighs is nobody's business, be it NaN.
        weight_TK = weight_TK.masked_fill(row_TK == num_rows, 0)
    if y_ND.device.type == "cpu":
        # Gathered, weighed and added in one pass, without K rows of width D per token in between.
        return F.embedding_bag(row_TK, y_ND, mode="sum", per_sample_weights=weight_TK)
    return torch.einsum("tkd,tk->td", y_ND[row_TK], weight_TK)


def spread_slots(value_N: torch.Tensor, slot_N: torch.Tensor, like_TK: torch.Tensor) -> torch.Tensor:
    """A number per row back at its slot, (T, K); exactly zero at skipped slots."""
    return like_TK.new_zeros(like_TK.numel()).index_copy_(0, slot_N, value_N).view(like_TK.shape)
