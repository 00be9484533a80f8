"""Which cases the suite of the mixers measures."""

from moe_hf.bench.mixers.cases import Case
from moe_hf.bench.mixers.comparisons import comparison_cases
from moe_hf.bench.mixers.decoding import decoding_cases
from moe_hf.bench.mixers.measure import Effort
from moe_hf.bench.mixers.perplexity import Schooling

MEANING = "the table of docs/mixers.md: every mixer against transformers, attention and its other forms, 1 thread"


def suite_cases(quick: bool) -> list[Case]:
    """The cases behind every row of the table; `quick` leaves out what takes minutes, and narrows some layers."""
    return [*comparison_cases(quick), *decoding_cases(quick)]


def suite_effort(quick: bool) -> Effort:
    """How often each is timed."""
    return Effort(rounds=2, budget=0.1) if quick else Effort(rounds=3, budget=0.5)


def suite_schooling(quick: bool) -> Schooling:
    """How long the model of the perplexities is trained."""
    return Schooling(steps=20, heldout=4) if quick else Schooling()
