"""Measures the time and the memory of one layer of each kind at growing lengths."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from moe_hf.bench.harness.arms import FORWARD, TRAINING
from moe_hf.bench.harness.memory import step_memory
from moe_hf.bench.harness.timing import seconds_per_call
from moe_hf.bench.mixers.layers import KINDS, LONGEST, Layer, drawn, layer_arm
from moe_hf.bench.mixers.sizes import WIDTH, Point

SHORTEST = 512
# A training step of attention takes 16 times as long at four times the length, and thrice a forward pass.
_LONGEST = {FORWARD: LONGEST, TRAINING: LONGEST // 4}
_LONGEST_QUICK = {FORWARD: 4096, TRAINING: 2048}
_CPU = torch.device("cpu")
# A short call is repeated until it has taken so long.
_SECONDS = 0.2


def lengths_of(mode: str, quick: bool) -> list[int]:
    """Powers of two, from 512 on.

    >>> lengths_of(TRAINING, quick=True)
    [512, 1024, 2048]
    """
    longest = (_LONGEST_QUICK if quick else _LONGEST)[mode]
    return [SHORTEST << power for power in range((longest // SHORTEST).bit_length())]


def measure_lengths(quick: bool, on_kind: Callable[[str], None]) -> Iterator[Point]:
    """Every kind at every length, one thread, by CPU time; `on_kind` is called with what comes next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind in KINDS:
            layer = Layer(kind, WIDTH)
            for mode in _LONGEST:
                on_kind(f"{kind}, {mode}, growing length")
                for length in lengths_of(mode, quick):
                    arm = layer_arm(mode, kind, layer, drawn(length, WIDTH))
                    held = step_memory(arm.step, _CPU).peak
                    # What came before has warmed up everything but the length.
                    timed = partial(seconds_per_call, arm.step, clock="cpu", device=_CPU)
                    seconds = timed(1)
                    if seconds < _SECONDS:
                        # The first call at this length was the colder one: the lesser counts.
                        seconds = min(seconds, timed(max(1, int(_SECONDS / seconds))))
                    yield Point(kind, mode, length, seconds, held)
    finally:
        torch.set_num_threads(threads)
