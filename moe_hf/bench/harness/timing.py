"""Times several ways of doing the same work in turns, in random order, so that other load slows all of them alike."""

import gc
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from moe_hf.base.errors import ConfigError

CLOCKS = ("wall", "cpu")

Step = Callable[[], Any]


class SamplingPlan(NamedTuple):
    """How much is measured.

    After one call to warm up and one to see how long it takes, rounds are run until `budget` seconds are spent, at
    least `min_rounds` and at most `max_rounds`; each arm is timed once per round. Short calls are repeated until a
    sample lasts `min_sample` seconds. An opponent more than `slow` times slower than the fastest takes part in the
    first `slow_rounds` only.
    """

    budget: float = 10.0
    min_rounds: int = 5
    max_rounds: int = 31
    min_sample: float = 0.01
    slow: float = 4.0
    slow_rounds: int = 2


class Samples(NamedTuple):
    """Seconds per call of one arm, and the rounds they were taken in; a sample is the mean of `calls` calls."""

    calls: int
    seconds: list[float]
    rounds: list[int]


def require_clock(clock: str, threads: int) -> None:
    """Pass a clock that tells something about that many threads.

    Raises:
        ConfigError: there is no such clock, or its reading would mean nothing.
    """
    if clock not in CLOCKS:
        raise ConfigError(f"clock={clock!r} is not allowed; it must be one of {', '.join(CLOCKS)}")
    if clock == "cpu" and threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        raise ConfigError(
            f"clock='cpu' with {threads} threads reads the main thread's CPU time, which holds the time it waits for "
            "the others unless waiting is passive; set OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=0 in the "
            "environment, or use clock='wall' on a quiet machine"
        )


def seconds_per_call(step: Step, calls: int, clock: str, device: torch.device) -> float:
    """Seconds of one call, the mean over `calls` in a row.

    Args:
        step: what to time.
        calls: how often.
        clock: "wall"; or "cpu", the CPU time of the process with one thread and of the main thread with more. On a
            CUDA device it is always the device's own clock, by events.
        device: where the work is done.
    """
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        # A call returns before its work is done, and without its end there is no time between the two.
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3 / calls
    if clock == "wall":
        now = time.perf_counter
    else:
        # With several threads process_time would add up what they do side by side.
        now = time.process_time if torch.get_num_threads() == 1 else time.thread_time
    begun = now()
    for _ in range(calls):
        step()
    return (now() - begun) / calls


def in_turns(
    arms: Mapping[str, Step],
    plan: SamplingPlan,
    clock: str,
    device: torch.device,
    seed: int,
    opponents: frozenset[str] = frozenset(),
    yardsticks: frozenset[str] = frozenset(),
) -> Iterator[dict[str, Samples]]:
    """The samples so far, once after each round; the same lists grow from round to round.

    Args:
        arms: what to time, by name.
        plan: how much.
        clock: see `seconds_per_call`.
        device: where the work is done.
        seed: of the order within the rounds.
        opponents: arms that may be sampled less when they are slow.
        yardsticks: arms that do less work than the others, and so do not make them look slow.
    """
    if not arms:
        # Its rounds would only collect garbage, as many as the plan allows: nothing spends the budget.
        return
    once = {name: _warm_seconds(step, clock, device) for name, step in arms.items()}
    calls = {name: max(1, math.ceil(plan.min_sample / max(seconds, 1e-9))) for name, seconds in once.items()}
    fastest = min([seconds for name, seconds in once.items() if name not in yardsticks] or [math.inf])
    slow = {name for name in opponents if once[name] > plan.slow * fastest}
    round_seconds = sum(once[name] * calls[name] for name in arms if name not in slow)
    num_rounds = max(plan.min_rounds, min(plan.max_rounds, int(plan.budget / max(round_seconds, 1e-9))))

    samples = {name: Samples(calls[name], [], []) for name in arms}
    order = random.Random(seed)
    with _garbage_left_alone():
        for number in range(num_rounds):
            names = [name for name in arms if number < plan.slow_rounds or name not in slow]
            order.shuffle(names)
            # Between the samples, so that it does not fall into one of them.
            gc.collect()
            for name in names:
                samples[name].seconds.append(seconds_per_call(arms[name], calls[name], clock, device))
                samples[name].rounds.append(number)
            yield samples


def _warm_seconds(step: Step, clock: str, device: torch.device) -> float:
    # The first call allocates, compiles and tunes; the second tells how long one takes.
    seconds_per_call(step, 1, clock, device)
    return seconds_per_call(step, 1, clock, device)


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    gc.disable()
    # What is there already need not be looked through each time: it takes as long as a small measurement.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()
