"""Who takes the cores is told from the clocks, and said once."""

import pytest

from moe_hf.training.runs.cpu_share import CpuShare, CpuTimes, cpu_times


def share_after(*later: CpuTimes) -> CpuShare:
    return CpuShare(threads=1, read=iter([CpuTimes(0, 0, 0, 0), *later]).__next__)


def test_a_quarter_of_a_taken_machine_is_a_slowdown_of_four() -> None:
    assert share_after(CpuTimes(wall=20, own=5, busy=40, total=40)).slowdown() == pytest.approx(4)


@pytest.mark.parametrize(
    "times",
    [
        CpuTimes(wall=9, own=1, busy=18, total=18),  # too early to say
        CpuTimes(wall=20, own=5, busy=20, total=40),  # waits for something else than cores
        CpuTimes(wall=20, own=10, busy=40, total=40),  # busy, but not by much
        CpuTimes(wall=20, own=5, busy=0, total=0),  # a machine that does not tell
    ],
)
def test_anything_less_is_none(times) -> None:
    assert share_after(times).slowdown() is None


def test_each_window_begins_where_the_last_one_ended() -> None:
    share = share_after(CpuTimes(20, 20, 40, 40), CpuTimes(40, 24, 80, 80))
    assert share.slowdown() is None
    assert share.slowdown() == pytest.approx(5)


def test_the_clocks_of_this_machine_run() -> None:
    first = cpu_times()
    sum(i for i in range(300_000))
    second = cpu_times()
    assert second.wall > first.wall
    assert second.own >= first.own > 0
    # What the kernel says of idle cores may step back a little, so that no more is sure of the others.
    assert 0 < second.busy <= second.total
