"""Sorted slots for the tests of single kernels: some skipped, one expert empty."""

import torch

from moe_hf.ops.experts.triton.grouped_gemm import ExpertRows
from moe_hf.ops.experts.triton.sorting import sort_by_expert
from moe_hf.ops.experts.triton.tiles import Tiles

T, K, E, D, F = 9, 2, 3, 20, 18
TILES = Tiles(16, 16, 16)


def chosen(device: torch.device) -> torch.Tensor:
    """Experts 0 and 2 and, for skipped slots, 3."""
    expert_TK = torch.tensor([[0, 2], [2, 0], [3, 0], [0, 2], [2, 3], [0, 2], [2, 0], [0, 3], [0, 2]])
    return expert_TK.to(device)


def sorted_rows(device: torch.device) -> tuple[ExpertRows, dict[int, torch.Tensor]]:
    """The rows, and the slots of each visited expert in their order."""
    expert_TK = chosen(device)
    slots = {expert: (expert_TK.flatten() == expert).nonzero().flatten() for expert in (0, 2)}
    return ExpertRows(sort_by_expert(expert_TK, E), K), slots


def draw(*shape: int, seed: int, device: torch.device) -> torch.Tensor:
    """Normal numbers, drawn on the CPU whatever the device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
