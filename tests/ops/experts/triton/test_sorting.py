import pytest
import torch

from moe_hf.ops.experts.triton.sorting import sort_by_expert, tile_map


def routes(num_tokens, slots_per_token, num_experts, device):
    """Random ids with skipped ones, the middle expert left empty."""
    expert_TK = torch.randint(0, num_experts + 1, (num_tokens, slots_per_token))
    expert_TK[expert_TK == num_experts // 2] = num_experts
    return expert_TK.to(device)


# One program sorts 128 slots, several share more; 64 experts are counted at a time.
SHAPES = [(5, 2, 4), (1, 1, 1), (64, 2, 7), (65, 2, 7), (300, 2, 70), (37, 5, 3), (50, 1, 130)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_slots_are_sorted_stably_with_the_skipped_ones_last(shape, dtype, device, poisoned_memory):
    torch.manual_seed(0)
    num_experts = shape[-1]
    expert_TK = routes(*shape, device).to(dtype)
    slots = sort_by_expert(expert_TK, num_experts)
    count = torch.bincount(expert_TK.flatten(), minlength=num_experts + 1)
    assert torch.equal(slots.order_N, expert_TK.flatten().argsort(stable=True).int())
    assert torch.equal(slots.count_E, count[:-1].int())
    assert torch.equal(slots.offset_G, torch.cat([count.new_zeros(1), count[:-1].cumsum(0)]).int())


@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_cover_each_experts_rows_once(shape, block_m, device, poisoned_memory):
    torch.manual_seed(0)
    num_experts = shape[-1]
    slots = sort_by_expert(routes(*shape, device), num_experts)
    tile_3G, num_tiles = tile_map(slots, block_m)
    offset = slots.offset_G.tolist()
    wanted = [
        (expert, row, offset[expert + 1])
        for expert in range(num_experts)
        for row in range(offset[expert], offset[expert + 1], block_m)
    ]
    tiles = [tuple(tile) for tile in tile_3G.T.tolist()]
    assert len(tiles) == num_tiles
    assert tiles[: len(wanted)] == wanted
    assert all(expert == num_experts for expert, _, _ in tiles[len(wanted) :])


@pytest.mark.parametrize("num_tokens", [40, 300])
@pytest.mark.parametrize("kind", ["sliced", "expanded"])
def test_ids_need_not_be_contiguous(kind, num_tokens, device, poisoned_memory):
    torch.manual_seed(0)
    top_2 = routes(num_tokens, 2, 7, device)
    expert_TK = top_2[:, 1:] if kind == "sliced" else top_2[:1, :1].expand(num_tokens, 1)
    assert not expert_TK.reshape(-1).is_contiguous()
    slots = sort_by_expert(expert_TK, 7)
    assert torch.equal(slots.order_N, expert_TK.flatten().argsort(stable=True).int())
    assert torch.equal(slots.count_E, torch.bincount(expert_TK.flatten(), minlength=8)[:-1].int())


def test_no_slots_give_empty_experts(device):
    slots = sort_by_expert(torch.empty(0, 3, dtype=torch.int64, device=device), num_experts=4)
    assert slots.order_N.shape == (0,)
    assert slots.count_E.tolist() == [0] * 4
    assert slots.offset_G.tolist() == [0] * 5
