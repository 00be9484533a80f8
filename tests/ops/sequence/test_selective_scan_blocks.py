"""However a selective scan is divided into blocks and parts, it gives the same, in little memory."""

import pytest
import torch

from moe_hf.ops.sequence import selective_scan_blocks as blocks
from moe_hf.ops.sequence.selective_scan import reference_selective_scan, selective_scan
from moe_hf.ops.sequence.selective_scan_blocks import (
    ScanInputs,
    backward_pass,
    block_length,
    forward_pass,
    num_blocks,
    room_for_blocks,
)
from tests.ops.largest import LargestTensor
from tests.ops.sequence.scans import distance, make_inputs, make_options, values_and_gradients


def test_many_rows_and_channels_are_scanned_in_parts_alike() -> None:
    """More numbers of state than one step updates, and more rows than one buffer holds."""
    for batch, channels, state, length in ((2, 2100, 16, 11), (40, 64, 3, 70)):
        inputs = make_inputs(length, batch, channels, state)
        options = {"starts_BS": torch.arange(batch * length).view(batch, length) % 9 == 4}
        ours = values_and_gradients(selective_scan, inputs, options)
        theirs = values_and_gradients(reference_selective_scan, inputs, options)
        assert max(map(distance, ours, theirs)) <= 2e-6


def test_how_it_is_divided_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, options = make_inputs(70), make_options(70)
    expected = values_and_gradients(selective_scan, inputs, options)
    for limits in (blocks.OTHER_LIMITS, blocks.Limits(step=6, block=50)):
        monkeypatch.setattr(blocks, "CPU_LIMITS", limits)
        assert max(map(distance, values_and_gradients(selective_scan, inputs, options), expected)) <= 2e-6


def test_neither_pass_makes_the_states_of_all_positions() -> None:
    length, channels, state = 1024, 64, 16
    inputs = ScanInputs(*make_inputs(length, 1, channels, state), None)
    with torch.no_grad(), LargestTensor() as largest:
        y, last, kept = forward_pass(inputs, None, keeps=True)
        backward_pass(inputs, kept, y, last)
    assert largest.numbers <= length * channels * state / 15
    # One state per block, and room for two more.
    count = length / block_length(state, channels, inputs.u_BSD.device)
    assert kept.numel() == (count + 2) * channels * state


@pytest.mark.parametrize("length", [1, 7, 8, 63, 64, 65, 1000])
@pytest.mark.parametrize("sizes", [(16, 2048), (4, 5)])
def test_there_is_room_for_all_blocks_and_two_at_the_least(length: int, sizes: tuple[int, int]) -> None:
    cpu = torch.device("cpu")
    assert 8 <= block_length(*sizes, cpu) <= 64
    assert max(2, num_blocks(length, *sizes, cpu)) <= room_for_blocks(length, *sizes, cpu)
