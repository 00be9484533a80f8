"""Rows that grow at their end: in place, by copies, with a bounded memory, and cut back."""

import pytest
import torch

from moe_hf.layers.caches.growing_rows import GrowingRows


@torch.no_grad()
def test_extends_in_place_and_copies_when_full() -> None:
    rows = GrowingRows()
    assert rows.read() is None
    everything = torch.randn(2, 300, 3)
    for i in range(300):
        rows.append(everything[:, i : i + 1])
        if i == 10:
            early = rows.read()
    assert rows.read().equal(everything)
    assert early.equal(everything[:, :11])


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 4, 50])
def test_keeps_at_least_the_last(size: int) -> None:
    rows = GrowingRows(keep=5)
    everything = torch.randn(2, 200, 3)
    for i in range(0, 200, size):
        rows.append(everything[:, i : i + size])
    assert 5 <= len(rows) < 100
    assert rows.dropped == 200 - len(rows)
    assert rows.read()[:, -5:].equal(everything[:, -5:])


def test_with_a_gradient_it_never_writes_in_place() -> None:
    rows = GrowingRows()
    parts = [torch.randn(2, 2, 3, requires_grad=True) for _ in range(3)]
    total = 0
    for part in parts:
        rows.append(part)
        total = total + rows.read().square().sum()
    total.backward()
    assert parts[0].grad.equal(3 * 2 * parts[0])


def test_entries_kept_for_a_backward_pass_are_not_written_to() -> None:
    rows, weight = GrowingRows(), torch.ones(3, requires_grad=True)
    with torch.no_grad():
        rows.append(torch.ones(2, 4, 3))
    loss = (rows.read() * weight).sum()
    rows.append(torch.ones(2, 1, 3))
    loss.backward()
    assert weight.grad.tolist() == [8.0, 8.0, 8.0]


def test_rows_lose_different_numbers() -> None:
    rows = GrowingRows()
    rows.append(torch.arange(1.0, 9.0).view(2, 4, 1))
    rows.shift(torch.tensor([1, 3]))
    assert rows.read().flatten().tolist() == [1, 2, 3, 0, 0, 5]
    rows.shift(torch.tensor([2, 0]))
    assert rows.read().flatten().tolist() == [0, 0, 1, 0, 0, 5]


@torch.no_grad()
def test_zeros_that_stand_for_dropped_entries_are_not_counted_as_left() -> None:
    rows = GrowingRows(keep=5)
    rows.append(torch.ones(2, 20, 3))
    assert rows.least_left(2) == 3
    rows.shift(torch.tensor([3, 1]))
    # Four remain, two of them zeros in the first row.
    assert len(rows) == 4
    assert rows.least_left(0) == 2
    assert rows.least_left(torch.tensor([1, 3])) == 1
    rows.change(lambda x: x[[1, 1]])
    assert rows.least_left(0) == 4
    # Entries in their place take nothing away, and push zeros out.
    rows.change(lambda x: x[[0, 1]])
    rows.shift(torch.tensor([2, 0]))
    assert rows.least_left(0) == 2
    rows.append(torch.ones(2, 4, 3))
    rows.append(torch.ones(2, 60, 3))
    assert rows.least_left(0) == 5


@torch.no_grad()
def test_zeros_before_the_first_entry_are_what_they_are() -> None:
    rows = GrowingRows(keep=5)
    rows.append(torch.ones(2, 4, 3))
    rows.shift(torch.tensor([0, 3]))
    assert rows.least_left(1) == 3
