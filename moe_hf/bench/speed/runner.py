"""Measures one group: checks that its arms compute the same, counts their memory, then times them in turns."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.bench.speed.arms import FUSED, GEMM, NOT_COMPARED, TRANSFORMERS, Arm, Group, Options, Skipped
from moe_hf.bench.speed.memory import saved_bytes, step_memory
from moe_hf.bench.speed.results import ArmResult, GroupResult
from moe_hf.bench.speed.sizes import Size
from moe_hf.bench.speed.timing import Samples, SamplingPlan, in_turns, require_clock

# What rounding explains: backends add the same products up in different orders.
_MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class Job(NamedTuple):
    """One group to be built and measured; `memory` False leaves the memory out, which saves a call per arm."""

    build: Callable[[Size, str, Options], Group]
    size: Size
    mode: str
    memory: bool = True
    backends: tuple[str, ...] | None = None


class Measured(NamedTuple):
    """What was measured, and whether the user stopped it before the end."""

    groups: list[GroupResult]
    interrupted: bool


def run_jobs(
    jobs: Iterable[Job],
    options: Options,
    plan: SamplingPlan,
    clock: str,
    on_group: Callable[[GroupResult], None] = lambda group: None,
    on_progress: Callable[[Job, str], None] = lambda job, what: None,
) -> Measured:
    """The groups that were measured, all of them or those before Ctrl-C.

    Args:
        jobs: what to measure, in this order.
        options: see `Options`; a job's own choice of backends comes first.
        plan: how much.
        clock: see `seconds_per_call`.
        on_group: called with each group when it is done.
        on_progress: called with the job and the thing that is about to be done.

    Raises:
        ConfigError: the clock would tell nothing about one of the sizes, found before anything is measured.
    """
    jobs = list(jobs)
    for job in jobs:
        require_clock(clock, job.size.threads)
    groups: list[GroupResult] = []
    threads = torch.get_num_threads()
    try:
        for job in jobs:
            torch.set_num_threads(job.size.threads)
            chosen = options if job.backends is None else options._replace(backends=job.backends)
            partial: list[GroupResult] = []
            try:
                for group in _measure(job, chosen, plan, clock, on_progress):
                    partial[:] = [group]
            except KeyboardInterrupt:
                # A round that was cut short left some arms one sample behind, which the ratios do not mind.
                groups += [group for group in partial if group.arms]
                return Measured(groups, interrupted=True)
            groups += partial
            on_group(groups[-1])
    except KeyboardInterrupt:
        return Measured(groups, interrupted=True)
    finally:
        torch.set_num_threads(threads)
    return Measured(groups, interrupted=False)


def _measure(
    job: Job, options: Options, plan: SamplingPlan, clock: str, on_progress: Callable[[Job, str], None]
) -> Iterable[GroupResult]:
    """The group's result after each round."""
    on_progress(job, "building")
    group = job.build(job.size, job.mode, options)
    on_progress(job, "comparing results")
    arms, errors, wrong = _compared(group)
    skipped = group.skipped + wrong
    saved: dict[str, int] = {}
    peak: dict[str, int] = {}
    if job.memory:
        for arm in arms:
            if arm.family == GEMM:
                continue
            on_progress(job, f"memory of {arm.name}")
            if arm.saved is not None:
                saved[arm.name] = saved_bytes(arm.saved, arm.known())
            # The second call: what is kept from call to call is not what a call needs.
            arm.step()
            peak[arm.name] = step_memory(arm.step, options.device).peak

    def result(samples: dict[str, Samples]) -> GroupResult:
        measured = [
            ArmResult(
                arm.name,
                arm.family,
                samples[arm.name],
                arm.flops,
                errors.get(arm.name),
                saved.get(arm.name),
                peak.get(arm.name),
            )
            for arm in arms
            if samples[arm.name].seconds
        ]
        return GroupResult(group.case, group.mode, group.size, clock, measured, skipped, group.gradient_bytes)

    steps = {arm.name: arm.step for arm in arms}
    yardsticks = frozenset(arm.name for arm in arms if arm.family in NOT_COMPARED)
    opponents = frozenset(arm.name for arm in arms if arm.family in (TRANSFORMERS, FUSED))
    on_progress(job, "warming up")
    rounds = in_turns(steps, plan, clock, options.device, options.seed, opponents, yardsticks)
    for number, samples in enumerate(rounds):
        on_progress(job, f"round {number + 1}")
        yield result(samples)


def _compared(group: Group) -> tuple[list[Arm], dict[str, float], list[Skipped]]:
    """The arms that can run here and whose output is right, all relative errors, and the other arms."""
    expected = None if group.reference is None else group.reference().float()
    allowed = _MOST_ERROR[group.size.torch_dtype]
    right: list[Arm] = []
    errors: dict[str, float] = {}
    out: list[Skipped] = []
    for arm in group.arms:
        if arm.output is None:
            right.append(arm)
            continue
        try:
            found = arm.output().float()
        except (BackendUnavailableError, ConfigError) as error:
            # A backend whose package or device is absent says so at its first call.
            out.append(Skipped(arm.name, str(error)))
            continue
        # Without a reference of its own, a group is compared with its first arm.
        expected = found if expected is None else expected
        error_size = ((found - expected).norm() / expected.norm()).item()
        # Written so that a NaN is wrong.
        if error_size <= allowed:
            right.append(arm)
            errors[arm.name] = error_size
        else:
            out.append(Skipped(arm.name, f"WRONG: output off by {error_size:.1e}, rounding explains {allowed:.0e}"))
    return right, errors, out
