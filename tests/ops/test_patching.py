"""Patches: cutting, joining, shifting, and the layout of rows with padding or several documents."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.patching import (
    PatchLayout,
    from_patches,
    last_of_patch_before,
    lay_out,
    num_patches,
    patch_layout,
    pick_up,
    shift_right,
    to_patches,
)

B, S, P, D = 3, 11, 4, 5
LENGTHS = (0, 1, 3, 4, 5, 8, 11)


def rows(length: int = S) -> torch.Tensor:
    # No 0, which marks an empty place.
    return torch.arange(1, B * length + 1).view(B, length)


def documents_of(row: list[int], real: list[bool], starts: list[bool]) -> list[list[int]]:
    documents: list[list[int]] = [[]]
    for byte, is_real, begins in zip(row, real, starts, strict=True):
        if begins:
            documents.append([])
        if is_real:
            documents[-1].append(byte)
    return [document for document in documents if document]


def written_out(documents: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The patches of one row and their positions, each document for itself."""
    patches, positions = [], []
    for document in documents:
        for k in range(len(document) // P + 1):
            patch = document[k * P : (k + 1) * P]
            patches.append(patch + [0] * (P - len(patch)))
            positions.append(k)
    return patches, positions


@pytest.mark.parametrize("length", LENGTHS)
def test_joined_patches_are_the_row(length: int) -> None:
    x_BSD = torch.randn(B, length, D, generator=torch.Generator().manual_seed(0))
    patches = to_patches(x_BSD, P)
    assert patches.shape == (B, num_patches(length, P), P, D)
    assert from_patches(patches, length).equal(x_BSD)


def test_the_last_patch_is_filled() -> None:
    assert to_patches(rows(5)[:1], P, fill=-1).tolist() == [[[1, 2, 3, 4], [5, -1, -1, -1]]]


def test_a_shift_puts_the_first_in_front_and_drops_the_last() -> None:
    x_BKD = torch.randn(B, 3, D, generator=torch.Generator().manual_seed(0))
    first = torch.full((D,), 7.0)
    shifted = shift_right(x_BKD, first)
    assert shifted[:, 0].equal(first.expand(B, D))
    assert shifted[:, 1:].equal(x_BKD[:, :-1])


def test_a_shift_of_nothing_is_nothing() -> None:
    assert shift_right(torch.zeros(B, 0, D), torch.zeros(D)).shape == (B, 0, D)


def test_each_patch_knows_the_end_of_the_one_before() -> None:
    grid = to_patches(rows(), P)
    first = torch.tensor([[-1, -2], [-3, -4], [-5, -6]])
    before = last_of_patch_before(grid, 2, first)
    assert before[0].tolist() == [[-1, -2], [3, 4], [7, 8]]
    assert last_of_patch_before(grid, 2)[:, 1:].equal(before[:, 1:])
    assert last_of_patch_before(grid, 0).shape == (B, 3, 0)
    assert last_of_patch_before(grid, P)[:, 1:].equal(grid[:, :-1])


@pytest.mark.parametrize("length", LENGTHS)
def test_a_plain_layout_is_the_general_one(length: int) -> None:
    plain = patch_layout(P, (B, length))
    general = patch_layout(P, (B, length), mask_BS=torch.ones(B, length))
    assert plain.slot_BS is None
    assert plain.num_patches == general.num_patches == length // P + 1
    for one, other in zip(plain[2:], general[2:], strict=True):
        # A row without a byte has no real patch, but plain rows are not looked at.
        assert one.equal(other) or length == 0
    assert lay_out(rows(length), P, plain).equal(lay_out(rows(length), P, general))


@pytest.mark.parametrize("padding", ["left", "right", "both", "between"])
def test_padding_moves_no_patch(padding: str) -> None:
    mask = torch.ones(B, S, dtype=torch.long)
    for row, count in enumerate((0, 2, 7)):
        if padding in ("left", "both"):
            mask[row, :count] = 0
        if padding in ("right", "both"):
            mask[row, S - count // 2 - 1 :] = 0
        if padding == "between":
            mask[row, 2 : 2 + count] = 0
    check(mask, None)


def test_documents_begin_a_patch_each() -> None:
    starts = torch.zeros(B, S, dtype=torch.bool)
    starts[0, [0, 4, 8]] = True
    starts[1, [3, 4, 10]] = True
    check(None, starts)


def test_documents_and_padding_mix() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        mask = torch.rand(B, S, generator=generator) < 0.7
        check(mask, torch.rand(B, S, generator=generator) < 0.3)


def test_a_row_without_a_byte_has_no_real_patch() -> None:
    mask = torch.ones(2, S)
    mask[1] = 0
    layout = patch_layout(P, (2, S), mask_BS=mask)
    assert layout.real_BK.tolist() == [[True] * 3, [False] * 3]
    assert patch_layout(P, (2, S), mask_BS=torch.zeros(2, S)).num_patches == 1


def check(mask: torch.Tensor | None, starts: torch.Tensor | None) -> None:
    ids = rows()
    layout = patch_layout(P, (B, S), mask_BS=mask, starts_BS=starts)
    grid = lay_out(ids, P, layout)
    assert grid.shape == (B, layout.num_patches, P)
    real = torch.ones(B, S, dtype=torch.bool) if mask is None else mask != 0
    begins = torch.zeros(B, S, dtype=torch.bool) if starts is None else starts
    longest = 0
    for row in range(B):
        documents = documents_of(ids[row].tolist(), real[row].tolist(), begins[row].tolist())
        patches, positions = written_out(documents)
        longest = max(longest, len(patches))
        assert grid[row, : len(patches)].tolist() == patches
        assert not grid[row, len(patches) :].any()
        assert layout.position_BK[row, : len(patches)].tolist() == positions
        assert layout.begins_BK[row].tolist() == (layout.position_BK[row] == 0).tolist()
        assert layout.real_BK[row].tolist() == [k < len(patches) for k in range(layout.num_patches)]
        # What is empty is no part of the last document.
        if len(patches) < layout.num_patches:
            assert layout.begins_BK[row, len(patches)]
    assert layout.num_patches == max(longest, 1)
    assert pick_up(grid, S, layout)[real].equal(ids[real])
    check_next_places(layout, real)


def check_next_places(layout: PatchLayout, real: torch.Tensor) -> None:
    # Place u of a row holds u: behind each byte stands its own place + 1.
    places = torch.arange(layout.num_patches * P).expand(B, -1)
    behind = pick_up(to_patches(places, P), S, layout, offset=1)
    assert layout.slot_BS is not None
    assert behind[real].equal(layout.slot_BS[real] + 1)


@pytest.mark.parametrize("patch_size", [0, -2])
def test_a_patch_of_no_byte_is_an_error(patch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"patch_size must be an integer >= 1, got {patch_size}"):
        to_patches(rows(), patch_size)
    with pytest.raises(ConfigError, match="patch_size"):
        patch_layout(patch_size, (B, S), mask_BS=torch.ones(B, S))
