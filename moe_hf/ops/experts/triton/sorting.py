"""Sorts token slots by expert on the device, stably and without asking the host anything.

Shapes: T tokens, K experts per token, N = T*K slots, E experts, B blocks of slots, G tiles of rows.
"""

# Triton's compiler types the parameters of kernels; Python's types cannot.
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import torch
import triton  # noqa: TID251
import triton.language as tl  # noqa: TID251

from moe_hf.ops.experts.triton.tiles import COMPILATION

_BLOCK = 128


class SortedSlots(NamedTuple):
    """Slots (token * K + position) in the order of their experts; all int32.

    `order_N` lists slots expert by expert, within one expert ascending, skipped ones (id E) last. `count_E` says how
    many each expert has. `offset_G`, of E + 1 entries, says where each begins; the last entry is where the skipped
    ones do.
    """

    order_N: torch.Tensor
    count_E: torch.Tensor
    offset_G: torch.Tensor


def sort_by_expert(expert_TK: torch.Tensor, num_experts: int) -> SortedSlots:
    """Token slots grouped by expert, by counting: no host synchronisation, no atomics, always the same order.

    Args:
        expert_TK: experts of each token, in [0, E]; E marks a slot to skip.
        num_experts: E.
    """
    # The kernels take the ids for contiguous; flattening K = 1 may leave a stride.
    expert_N = expert_TK.reshape(-1).contiguous()
    if expert_N.numel() == 0:
        zero_G = torch.zeros(num_experts + 1, dtype=torch.int32, device=expert_N.device)
        return SortedSlots(zero_G[:0].clone(), zero_G[1:].clone(), zero_G)
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(expert_N):
        return _sort_few(expert_N, num_experts) if expert_N.numel() <= _BLOCK else _sort_many(expert_N, num_experts)


def _sort_few(expert_N: torch.Tensor, num_experts: int) -> SortedSlots:
    """One launch: each slot counts those before it."""
    num_slots = expert_N.numel()
    order_N, count_E, offset_G = (
        torch.empty(size, dtype=torch.int32, device=expert_N.device)
        for size in (num_slots, num_experts, num_experts + 1)
    )
    block_n = max(16, triton.next_power_of_2(num_slots))
    _sort_few_kernel[(1,)](
        expert_N, order_N, count_E, offset_G, num_slots, num_experts, block_n, _block_e(num_experts), **COMPILATION
    )
    return SortedSlots(order_N, count_E, offset_G)


def _sort_many(expert_N: torch.Tensor, num_experts: int) -> SortedSlots:
    """Counts per block and expert; their running sum says where each block's slots of an expert begin."""
    num_slots = expert_N.numel()
    num_blocks = triton.cdiv(num_slots, _BLOCK)
    order_N = torch.empty(num_slots, dtype=torch.int32, device=expert_N.device)
    # The last row counts the skipped slots: where those begin is the last offset.
    count_EB = torch.empty(num_experts + 1, num_blocks, dtype=torch.int32, device=expert_N.device)
    _count_kernel[(num_blocks,)](
        expert_N, count_EB, num_slots, num_experts, num_blocks, _BLOCK, _block_e(num_experts), **COMPILATION
    )
    begin_EB = count_EB.flatten().cumsum(0, dtype=torch.int32).view_as(count_EB) - count_EB
    _place_kernel[(num_blocks,)](expert_N, begin_EB, order_N, num_slots, num_blocks, _BLOCK, **COMPILATION)
    offset_G = begin_EB[:, 0].contiguous()
    return SortedSlots(order_N, offset_G.diff(), offset_G)


def _block_e(num_experts: int) -> int:
    return min(64, max(16, triton.next_power_of_2(num_experts + 1)))


class TileMap(NamedTuple):
    """Which rows of the sorted slots each tile of a grouped GEMM computes.

    `tile_3G` holds for each of `num_tiles` tiles its expert, its first row and the end of its expert's rows; surplus
    tiles have expert E. `num_tiles` is an upper bound that needs no look at the counts.
    """

    tile_3G: torch.Tensor
    num_tiles: int


def tile_map(slots: SortedSlots, block_m: int) -> TileMap:
    """The tiles of at most `block_m` rows that cover all sorted slots, none of them with rows of two experts."""
    num_slots, num_experts = slots.order_N.numel(), slots.count_E.numel()
    # Whole tiles of all slots, and for each expert one that is not full; never more tiles than slots.
    num_tiles = min(num_slots, num_slots // block_m + min(num_experts, num_slots))
    tile_3G = torch.empty(3, num_tiles, dtype=torch.int32, device=slots.order_N.device)
    block_e = min(256, max(16, triton.next_power_of_2(num_experts)))
    _tile_map_kernel[(triton.cdiv(num_tiles, 64),)](
        slots.offset_G, tile_3G, num_tiles, num_experts, block_m, BLOCK_G=64, BLOCK_E=block_e, **COMPILATION
    )
    return TileMap(tile_3G, num_tiles)


@triton.jit(do_not_specialize=["num_slots"])
def _sort_few_kernel(
    expert_N, order_N, count_E, offset_G, num_slots, num_experts, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr
):
    slot = tl.arange(0, BLOCK_N)
    expert = tl.load(expert_N + slot, mask=slot < num_slots, other=num_experts + 1).to(tl.int32)
    # The same ids once more along the other axis: loading them again is cheaper than a change of layout.
    earlier = tl.load(expert_N + slot, mask=slot < num_slots, other=num_experts + 1).to(tl.int32)
    before = (earlier[None, :] < expert[:, None]) | (
        (earlier[None, :] == expert[:, None]) & (slot[None, :] < slot[:, None])
    )
    place = tl.sum(before.to(tl.int32), axis=1)
    tl.store(order_N + place, slot, mask=slot < num_slots)
    for first in range(0, num_experts + 1, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        count = tl.sum((earlier[None, :] == e[:, None]).to(tl.int32), axis=1)
        offset = tl.sum((earlier[None, :] < e[:, None]).to(tl.int32), axis=1)
        tl.store(count_E + e, count, mask=e < num_experts)
        tl.store(offset_G + e, offset, mask=e <= num_experts)


@triton.jit(do_not_specialize=["num_slots", "num_blocks"])
def _count_kernel(expert_N, count_EB, num_slots, num_experts, num_blocks, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    block = tl.program_id(0)
    slot = block * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(expert_N + slot, mask=slot < num_slots, other=num_experts + 1).to(tl.int32)
    for first in range(0, num_experts + 1, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        count = tl.sum((expert[None, :] == e[:, None]).to(tl.int32), axis=1)
        tl.store(count_EB + e.to(tl.int64) * num_blocks + block, count, mask=e <= num_experts)


@triton.jit(do_not_specialize=["num_slots", "num_blocks"])
def _place_kernel(expert_N, begin_EB, order_N, num_slots, num_blocks, BLOCK_N: tl.constexpr):
    block = tl.program_id(0)
    index = tl.arange(0, BLOCK_N)
    slot = block * BLOCK_N + index
    live = slot < num_slots
    expert = tl.load(expert_N + slot, mask=live, other=0).to(tl.int32)
    # Filled with no expert, so that a dead slot looks like none of them.
    earlier = tl.load(expert_N + slot, mask=live, other=-1).to(tl.int32)
    before = (earlier[None, :] == expert[:, None]) & (index[None, :] < index[:, None])
    begin = tl.load(begin_EB + expert.to(tl.int64) * num_blocks + block, mask=live, other=0)
    tl.store(order_N + begin + tl.sum(before.to(tl.int32), axis=1), slot, mask=live)


@triton.jit(do_not_specialize=["num_tiles"])
def _tile_map_kernel(offset_G, tile_3G, num_tiles, num_experts, block_m, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr):
    tile = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    expert = tl.zeros([BLOCK_G], tl.int32)
    first_tile = tl.zeros([BLOCK_G], tl.int32)
    total = 0
    for first in range(0, num_experts, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        begin = tl.load(offset_G + e, mask=e < num_experts, other=0)
        end = tl.load(offset_G + e + 1, mask=e < num_experts, other=0)
        tiles = (end - begin + block_m - 1) // block_m
        last = total + tl.cumsum(tiles, 0)
        total += tl.sum(tiles, 0)
        done = (last[None, :] <= tile[:, None]) & (e < num_experts)[None, :]
        expert += tl.sum(done.to(tl.int32), axis=1)
        first_tile = tl.maximum(first_tile, tl.max(tl.where(done, last[None, :], 0), axis=1))
    row = tl.load(offset_G + expert) + (tile - first_tile) * block_m
    end = tl.load(offset_G + expert + 1, mask=expert < num_experts, other=0)
    tl.store(tile_3G + tile, expert, mask=tile < num_tiles)
    tl.store(tile_3G + num_tiles + tile, row, mask=tile < num_tiles)
    tl.store(tile_3G + 2 * num_tiles + tile, end, mask=tile < num_tiles)
