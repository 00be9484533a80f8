"""Holds what was measured against the claims of the cases."""

from collections.abc import Mapping, Sequence

from moe_hf.bench.harness.spread import ratio
from moe_hf.bench.mixers.cases import PEAK, Case, CaseResult, Claim
from moe_hf.bench.mixers.perplexity import FULL, MOST_PERPLEXITY, TOPK
from moe_hf.bench.speed.goals import Goal, Value, Verdict


def verdicts(cases: Sequence[Case], results: Sequence[CaseResult], perplexities: Mapping[str, float]) -> list[Verdict]:
    """One verdict for each quantity that a case claims something of, in their order; that of the perplexity last."""
    by_label = {result.label: result for result in results}
    rows: dict[str, tuple[Claim, list[Value]]] = {}
    for case in cases:
        for claim in case.claims:
            _, values = rows.setdefault(claim.quantity, (claim, []))
            result = by_label.get(case.label)
            if result is not None:
                values += _value(claim, result)
    found = [_verdict(claim.quantity, claim.must, claim.higher, values) for claim, values in rows.values()]
    ratios = [Value("a small trained model", perplexities[TOPK] / perplexities[FULL])] if perplexities else []
    return [*found, _verdict(f"perplexity with {TOPK} / with {FULL}", MOST_PERPLEXITY, False, ratios)]


def _verdict(quantity: str, must: float, higher: bool, values: list[Value]) -> Verdict:
    return Verdict(Goal(quantity, must, None, higher, lambda groups: values), values)


def _value(claim: Claim, result: CaseResult) -> list[Value]:
    below = result.arm(claim.below)
    above = [arm for name in claim.above if (arm := result.arm(name)) is not None]
    if below is None or len(above) < len(claim.above):
        return []
    if claim.of == PEAK:
        least = min(arm.peak_bytes or 0 for arm in above)
        where = f"{result.label}: {least / 2**20:,.0f} and {(below.peak_bytes or 0) / 2**20:,.0f} MiB"
        return [Value(where, least / max(below.peak_bytes or 0, 1))]
    if below.samples is None:
        return []
    found = [ratio(arm.samples, below.samples) for arm in above if arm.samples is not None]
    if len(found) < len(above):
        return []
    # The median of the ratios within the rounds: bursts of other load shift it hardly.
    return [Value(result.label, min(one.paired for one in found))]
