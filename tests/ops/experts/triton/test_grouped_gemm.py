"""Each grouped GEMM by itself against products of one expert after the other."""

import pytest
import torch

from moe_hf.ops.experts.activations import GATES, Activation, activate
from moe_hf.ops.experts.triton.grouped_gemm import combine_slots, contiguous_axis, gate_layout, rows_gemm, up_gemm
from tests.ops.experts.triton.rows import TILES, D, E, F, K, T, chosen, draw, sorted_rows


def in_order(parts):
    return torch.cat([parts[expert] for expert in sorted(parts)])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("biased", [True, False])
def test_up_projections_are_gathered_activated_and_kept(gate, biased, device, poisoned_memory):
    activation = Activation("silu", gate)
    rows, slots = sorted_rows(device)
    width = F if gate == "none" else 2 * F
    x, up, bias = (draw(*shape, seed=n, device=device) for n, shape in enumerate([(T, D), (E, width, D), (E, width)]))
    z, h = up_gemm(rows, x, up, bias if biased else None, activation, keep_z=True, tiles=TILES)
    wanted = {e: x[slot // K] @ up[e].mT + (bias[e] if biased else 0) for e, slot in slots.items()}
    visited = len(in_order(slots))
    torch.testing.assert_close(z[:visited], in_order(wanted), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h[:visited], activate(in_order(wanted), activation), rtol=1e-4, atol=1e-4)
    assert up_gemm(rows, x, up, None, activation, keep_z=False, tiles=TILES)[0].shape == (0, width)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_rows_are_multiplied_weighted_and_scattered_to_their_slots(weighted, transposed, device, poisoned_memory):
    rows, slots = sorted_rows(device)
    a, bias, weight = (draw(*shape, seed=n, device=device) for n, shape in enumerate([(T * K, F), (E, D), (T, K)]))
    matrix = draw(E, D, F, seed=3, device=device).mT if transposed else draw(E, F, D, seed=3, device=device)
    out = rows_gemm(rows, a, matrix, bias, weight if weighted else None, tiles=TILES)
    start = 0
    for expert, slot in slots.items():
        wanted = a[start : start + len(slot)] @ matrix[expert] + bias[expert]
        wanted = wanted * weight.flatten()[slot, None] if weighted else wanted
        torch.testing.assert_close(out[slot], wanted, rtol=1e-4, atol=1e-4)
        start += len(slot)


def test_slots_are_added_up_at_their_tokens_without_the_skipped(device, poisoned_memory):
    y, expert, out = draw(T * K, D, seed=0, device=device), chosen(device), torch.empty(T, D, device=device)
    y[expert.flatten() == E] = torch.nan
    combine_slots(y, expert, E, out)
    torch.testing.assert_close(out, y.nan_to_num().view(T, K, D).sum(dim=1))


def test_layouts_are_told_apart():
    matrix = torch.zeros(2, 3, 4)
    assert [contiguous_axis(x) for x in (matrix, matrix.mT, matrix[..., ::2])] == ["last", "first", "none"]
    layouts = [gate_layout(Activation("gelu", gate), 7) for gate in GATES]
    assert layouts == [(False, 1, 7), (True, 1, 7), (True, 2, 1)]
