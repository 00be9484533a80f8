"""Measures cases: checks that the arms of each compute the same, counts their memory, then times them in turns."""

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from moe_hf.bench.harness.arms import GEMM, OPPONENTS, YARDSTICKS, Arm, Group, Options, Skipped
from moe_hf.bench.harness.cases import Case
from moe_hf.bench.harness.comparison import CANNOT_RUN, Compared, compare, further_arms, reason_text
from moe_hf.bench.harness.memory import saved_bytes, step_memory
from moe_hf.bench.harness.results import UNTIMED, ArmResult, GroupResult
from moe_hf.bench.harness.timing import Samples, SamplingPlan, in_turns, require_clock, seconds_per_call


class Measured(NamedTuple):
    """What was measured, and whether the user stopped it before the end."""

    groups: list[GroupResult]
    interrupted: bool


def run_cases(
    cases: Iterable[Case],
    options: Options,
    plan: SamplingPlan,
    clock: str,
    on_group: Callable[[GroupResult], None] = lambda group: None,
    on_progress: Callable[[Case, str], None] = lambda case, what: None,
) -> Measured:
    """The groups that were measured, all of them or those before Ctrl-C; one that cannot run has no arms.

    Args:
        cases: what to measure, in this order.
        options: see `Options`; a case's own choice of backends comes first.
        plan: how much.
        clock: see `seconds_per_call`.
        on_group: called with each group when it is done.
        on_progress: called with the case and the thing that is about to be done.

    Raises:
        ConfigError: the clock would tell nothing about one of the sizes, found before anything is measured.
    """
    cases = list(cases)
    for case in cases:
        require_clock(clock, case.size.threads)
    groups: list[GroupResult] = []
    threads = torch.get_num_threads()
    try:
        for case in cases:
            torch.set_num_threads(case.size.threads)
            chosen = options if case.backends is None else options._replace(backends=case.backends)
            latest: list[GroupResult] = []
            try:
                for group in _measure(case, chosen, plan, clock, on_progress):
                    latest[:] = [group]
            except KeyboardInterrupt:
                # A round that was cut short left some arms one sample behind, which the ratios do not mind.
                groups += [group for group in latest if group.arms]
                return Measured(groups, interrupted=True)
            except CANNOT_RUN as error:
                nothing = Skipped("the whole group", reason_text(error))
                latest = [GroupResult(case.name, case.mode, case.size, clock, [], [nothing])]
            groups += latest
            on_group(groups[-1])
            # What one case leaves in cycles would still be held while the next one's memory is counted.
            gc.collect()
    except KeyboardInterrupt:
        return Measured(groups, interrupted=True)
    finally:
        torch.set_num_threads(threads)
    return Measured(groups, interrupted=False)


def _measure(
    case: Case, options: Options, plan: SamplingPlan, clock: str, on_progress: Callable[[Case, str], None]
) -> Iterator[GroupResult]:
    """The group's result after each round."""
    on_progress(case, "building")
    group = case.build(options)
    on_progress(case, "comparing results")
    # Where only memory is counted nothing is compared: the same arms are compared at the size at which they are timed.
    arms, errors, skipped = _compared(group) if case.timed else Compared(group.arms, {}, list(group.skipped))
    saved: dict[str, int] = {}
    peak: dict[str, int] = {}
    for arm in arms:
        if case.memory and arm.family != GEMM:
            on_progress(case, f"memory of {arm.name}")
            if arm.saved is not None:
                saved[arm.name] = saved_bytes(arm.saved, arm.known())
            if not arm.once:
                # The second call: what is kept from call to call is not what a call needs.
                arm.step()
            peak[arm.name] = step_memory(arm.step, options.device).peak

    on_progress(case, "warming up")
    for number, samples in enumerate(_timed(arms, plan, clock, options) if case.timed else [{}]):
        on_progress(case, f"round {number + 1}")
        measured = []
        for arm in arms:
            of_arm = samples.get(arm.name, UNTIMED)
            # Those of one cold call have no sample before all rounds are over.
            if of_arm.seconds or not case.timed:
                known = (errors.get(arm.name), saved.get(arm.name), peak.get(arm.name))
                measured.append(ArmResult(arm.name, arm.family, of_arm, arm.flops, *known, arm.gradient_bytes))
        yield GroupResult(case.name, case.mode, case.size, clock, measured, skipped)


def _compared(group: Group) -> Compared:
    """The arms that are right and those that these make of themselves, so far as they are right too."""
    first = compare(group.arms)
    further, not_made = further_arms(first.arms)
    second = compare(further)
    skipped = [*group.skipped, *first.skipped, *not_made, *second.skipped]
    return Compared(first.arms + second.arms, first.errors | second.errors, skipped)


def _timed(arms: list[Arm], plan: SamplingPlan, clock: str, options: Options) -> Iterator[dict[str, Samples]]:
    """The samples of all arms so far, once after each round; those of one cold call come last."""
    by_name = {arm.name: arm for arm in arms}
    steps = {arm.name: arm.step for arm in arms if not arm.once}
    opponents, yardsticks = (
        frozenset(name for name in steps if by_name[name].family in families) for families in (OPPONENTS, YARDSTICKS)
    )
    found: dict[str, Samples] = {}
    for samples in in_turns(steps, plan, clock, options.device, options.seed, opponents, yardsticks):
        found = {
            name: of._replace(seconds=[seconds / by_name[name].tokens for seconds in of.seconds])
            for name, of in samples.items()
        }
        yield found
    for arm in arms:
        if arm.once:
            # Cold, and outside the turns: it takes minutes, in which the machine is not the same any more anyway.
            seconds = seconds_per_call(arm.step, 1, clock, options.device) / arm.tokens
            found[arm.name] = Samples(1, [seconds], [0])
            yield found
