"""Notices that other programs take the cores on which a run computes."""

import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

MANY_TIMES = 3.0
"""A run that takes so many times as long as alone is worth a word."""

_SECONDS = 10.0
_SATURATED = 0.9


class CpuTimes(NamedTuple):
    """Seconds since some start: of the clock, of this process on all cores, and of all cores busy and in all."""

    wall: float
    own: float
    busy: float
    total: float


def cpu_times() -> CpuTimes:
    """What the clocks show now."""
    own, machine = psutil.Process().cpu_times(), psutil.cpu_times()
    # On Linux two more follow, the times of guests, which are counted in the first two already.
    total = sum(machine[:8])
    waiting = machine.idle + getattr(machine, "iowait", 0.0)
    return CpuTimes(time.perf_counter(), own.user + own.system, total - waiting, total)


class CpuShare:
    """Watches, over windows of ten seconds, how much of its threads' time a process gets.

    Args:
        threads: threads that compute.
        read: the clocks.
    """

    def __init__(self, threads: int | None = None, read: Callable[[], CpuTimes] = cpu_times) -> None:
        self._threads = min(threads or torch.get_num_threads(), psutil.cpu_count() or 1)
        self._read = read
        self._mark = read()

    def slowdown(self) -> float | None:
        """About how many times faster the last window would have been alone; None where that is not much, or unknown.

        Only where all cores were taken: a process that waits for a disk gets little of them as well.
        """
        now, mark = self._read(), self._mark
        wall, total = now.wall - mark.wall, now.total - mark.total
        if wall < _SECONDS:
            return None
        self._mark = now
        if total <= 0 or (now.busy - mark.busy) / total < _SATURATED:
            return None
        times = self._threads * wall / max(now.own - mark.own, 1e-3)
        return times if times >= MANY_TIMES else None
