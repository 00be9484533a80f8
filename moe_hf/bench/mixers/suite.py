"""The suite of the mixers: its cases, and what else is measured of mixers."""

from collections.abc import Callable, Iterator
from typing import Any

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.harness.cases import Case, Goal
from moe_hf.bench.harness.suite import Suite
from moe_hf.bench.harness.timing import SamplingPlan
from moe_hf.bench.mixers.attention_arms import FULL, TOPK
from moe_hf.bench.mixers.comparisons import comparison_cases
from moe_hf.bench.mixers.decoding import decoding_cases
from moe_hf.bench.mixers.lengths import measure_lengths
from moe_hf.bench.mixers.perplexity import MOST_PERPLEXITY, Schooling, perplexities
from moe_hf.bench.mixers.report import LENGTHS, MIXERS_PAGE, PERPLEXITIES


def suite_cases(quick: bool) -> list[Case]:
    """The cases behind every row of the table; `quick` leaves out what takes minutes, and narrows some layers."""
    return [*comparison_cases(quick), *decoding_cases(quick)]


def _further(
    quick: bool, options: Options, whole: bool, on_progress: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    # First, since it is a number to reach; the lengths are for pictures alone.
    on_progress("perplexity of a small trained model")
    schooling = Schooling(steps=20, heldout=4) if quick else Schooling()
    yield PERPLEXITIES, perplexities(schooling, options.seed)
    if whole:
        yield LENGTHS, list(measure_lengths(quick, on_progress))


PERPLEXITY_GOAL = Goal(
    f"perplexity with {TOPK} / with {FULL}",
    MOST_PERPLEXITY,
    TOPK,
    FULL,
    higher=False,
    of=PERPLEXITIES,
    case="a small trained model",
)

MIXERS_SUITE = Suite(
    "the table of docs/mixers.md: every mixer against transformers, attention and its other forms, 1 thread",
    "cpu",
    suite_cases,
    MIXERS_PAGE,
    (PERPLEXITY_GOAL,),
    clock="cpu",
    plans=(SamplingPlan(budget=0.5, min_rounds=3, slow_rounds=1), SamplingPlan(0.1, min_rounds=2, slow_rounds=1)),
    further=_further,
)
