"""Rotary embedding: norms are kept, only distances count, the angles are the paper's."""

import math

import pytest
import torch

from moe_hf.layers.attention.positions import RotaryEmbedding, rotate


def test_position_zero_turns_nothing_and_norms_are_kept() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, RotaryEmbedding(8, 10000.0)(torch.arange(5)[None], torch.float32))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert (turned[:, :, 1:] - x[:, :, 1:]).abs().min() > 0


@pytest.mark.parametrize("shift", [1, 7, 1000])
def test_scores_depend_on_the_distance_alone(shift: int) -> None:
    rotary = RotaryEmbedding(8, 10000.0)
    query, key = torch.randn(2, 1, 1, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = rotary(torch.arange(6)[None], torch.float64)
    there = rotary(torch.arange(6)[None] + shift, torch.float64)
    score = rotate(query, here) @ rotate(key, here).transpose(-1, -2)
    shifted = rotate(query, there) @ rotate(key, there).transpose(-1, -2)
    torch.testing.assert_close(score, shifted, atol=1e-3, rtol=1e-3)


def test_the_angle_of_each_pair_is_position_times_theta_to_the_minus_2i_over_c() -> None:
    rotation = RotaryEmbedding(4, 100.0)(torch.tensor([[3]]), torch.float64)
    expected = [math.cos(3), math.cos(0.3), math.cos(3), math.cos(0.3)]
    torch.testing.assert_close(rotation.cos_BSC[0, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_angles_are_computed_in_float32_whatever_is_returned() -> None:
    rotary, position = RotaryEmbedding(4, 10000.0), torch.tensor([[2047]])
    half = rotary(position, torch.bfloat16)
    assert half.cos_BSC.dtype == torch.bfloat16
    torch.testing.assert_close(half.cos_BSC, rotary(position, torch.float32).cos_BSC.bfloat16())


def test_has_nothing_to_save() -> None:
    assert not RotaryEmbedding(8, 10000.0).state_dict()
