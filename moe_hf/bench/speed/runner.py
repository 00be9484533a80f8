"""Measures one group: checks that its arms compute the same, counts their memory, then times them in turns."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from moe_hf.bench.harness.memory import saved_bytes, step_memory
from moe_hf.bench.harness.timing import Samples, SamplingPlan, in_turns, require_clock
from moe_hf.bench.speed.arms import FUSED, GEMM, NOT_COMPARED, TRANSFORMERS, Group, Options, Skipped
from moe_hf.bench.speed.comparison import CANNOT_RUN, compare, further_arms, reason_text
from moe_hf.bench.speed.results import ArmResult, GroupResult
from moe_hf.bench.speed.sizes import Size


class Job(NamedTuple):
    """One group to be built and measured; `memory` False leaves the memory out, which saves a call per arm.

    `case` names the group where it cannot even be built.
    """

    build: Callable[[Size, str, Options], Group]
    size: Size
    mode: str
    memory: bool = True
    backends: tuple[str, ...] | None = None
    case: str = ""


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
    """The groups that were measured, all of them or those before Ctrl-C; one that cannot run has no arms.

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
            except CANNOT_RUN as error:
                nothing = Skipped("the whole group", reason_text(error))
                partial = [GroupResult(job.case, job.mode, job.size, clock, [], [nothing])]
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
    compared = compare(group)
    further, not_made = further_arms(compared.arms)
    others = compare(group._replace(arms=further))
    arms, errors = compared.arms + others.arms, compared.errors | others.errors
    skipped = group.skipped + compared.skipped + not_made + others.skipped
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
