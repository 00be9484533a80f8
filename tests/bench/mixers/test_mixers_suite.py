"""The suite of the mixers: what it measures, how it judges, and what it writes."""

import json
import math
from pathlib import Path

import pytest
import torch

from moe_hf.bench.harness.timing import Samples
from moe_hf.bench.mixers.cases import DECODE, FORWARD, PEAK, TRAINING, Arm, ArmResult, Case, CaseResult, Claim
from moe_hf.bench.mixers.goals import verdicts
from moe_hf.bench.mixers.layers import KINDS
from moe_hf.bench.mixers.lengths import Point, lengths_of
from moe_hf.bench.mixers.measure import Effort, measure
from moe_hf.bench.mixers.perplexity import FULL, TOPK, Schooling, perplexities
from moe_hf.bench.mixers.plots import draw_lengths
from moe_hf.bench.mixers.report import MixersReport, write_report
from moe_hf.bench.mixers.suite import suite_cases


def arms() -> list[Arm]:
    small, large = torch.ones(50, 50), torch.ones(200, 200)
    return [
        Arm("first", lambda: small @ small, output=lambda: small[0]),
        Arm("same", lambda: large @ large, tokens=2, output=lambda: small[0] + 1e-6),
        Arm("wrong", lambda: small, output=lambda: small[0] + 1),
        Arm("nothing to compare", lambda: large @ large),
        Arm("slow", lambda: small @ small, output=lambda: small[0], once=True),
    ]


CLAIMS = (
    Claim("faster", 1.0, ("first", "same"), "nothing to compare"),
    Claim("not measured", 1.0, ("wrong",), "first"),
)


def case(**fields: object) -> Case:
    return Case("two", FORWARD, 64, 8, arms, CLAIMS)._replace(**fields)


def result(label: str, seconds: dict[str, float], peak: dict[str, int] | None = None) -> CaseResult:
    found = [ArmResult(name, Samples(1, [value, value], [0, 1])) for name, value in seconds.items()]
    found += [ArmResult(name, peak_bytes=value) for name, value in (peak or {}).items()]
    return CaseResult("two", FORWARD, 64, 8, label, found, {})


def test_arms_are_compared_and_those_that_are_wrong_are_left_out() -> None:
    (found,) = measure([case()], Effort(rounds=2, budget=0.0), 0, lambda case: None)
    assert [arm.name for arm in found.arms] == ["first", "same", "nothing to compare", "slow"]
    assert list(found.skipped) == ["wrong"]
    assert "WRONG: off by" in found.skipped["wrong"]
    slow = found.arm("slow")
    assert slow is not None
    assert slow.samples is not None
    assert len(slow.samples.seconds) == 1


def test_what_a_call_holds_is_counted_instead_of_timed() -> None:
    (found,) = measure([case(memory=True)], Effort(), 0, lambda case: None)
    same = found.arm("same")
    assert same is not None
    assert same.samples is None
    assert same.peak_bytes == 200 * 200 * 4


def test_a_case_that_cannot_run_says_why_and_the_next_one_runs() -> None:
    def broken() -> list[Arm]:
        raise RuntimeError("out of luck")

    first, second = measure([case(build=broken), case()], Effort(rounds=1, budget=0.0), 0, lambda case: None)
    assert first.arms == []
    assert first.skipped == {"the whole case": "out of luck"}
    assert second.arms


def test_the_best_of_several_opponents_counts_and_every_case_of_a_quantity() -> None:
    one, two = case(length=1), case(length=2)
    results = [
        result(one.label, {"first": 4.0, "same": 3.0, "nothing to compare": 1.5}),
        result(two.label, {"first": 1.0, "same": 9.0, "nothing to compare": 2.0}),
    ]
    faster, missing, perplexity = verdicts([one, two], results, {FULL: 4.0, TOPK: 4.02})
    assert [value.number for value in faster.values] == [2.0, 0.5]
    assert faster.text == "MISSED in 1 of 2"
    assert missing.text == "not measured"
    assert perplexity.text == "met"
    assert verdicts([], [], {FULL: 4.0, TOPK: 4.1})[0].text == "MISSED in 1 of 1"


def test_memory_is_held_against_memory() -> None:
    held = case(claims=(Claim("memory", 0.5, ("ours",), "theirs", higher=False, of=PEAK),), memory=True)
    verdict = verdicts([held], [result(held.label, {}, {"ours": 3 << 20, "theirs": 12 << 20})], {})[0]
    assert verdict.values[0].number == 0.25
    assert "3 and 12 MiB" in verdict.values[0].where
    assert verdict.met


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_has_a_label_of_its_own(quick: bool) -> None:
    labels = [case.label for case in suite_cases(quick)]
    assert len(set(labels)) == len(labels)


def test_the_suite_claims_every_number_of_the_table() -> None:
    claims = {claim.quantity: claim.must for case in suite_cases(quick=False) for claim in case.claims}
    for words, must in {
        "Mamba-1 forward vs transformers": 2.2,
        "Mamba-1 forward+backward vs transformers, 512 tokens": 30,
        "Mamba-1 forward+backward vs transformers, 2,048 tokens": 300,
        "Mamba-1 forward+backward vs a scan of unbound tokens": 2.5,
        "Mamba-1 memory / transformers', 8,192 tokens": 0.12,
        "Mamba-2 forward vs transformers": 1.8,
        "Mamba-2 forward vs transformers, 8,192 tokens": 2.8,
        "Mamba-2 forward+backward vs transformers": 1.7,
        "Mamba-2 memory / transformers', 8,192 tokens": 0.12,
        "RWKV-4 forward vs transformers, width 768": 1.4,
        "RWKV-4 forward vs transformers, width 256": 3,
        "RWKV-4 forward+backward vs transformers": 3,
        "RWKV-7 forward vs its recurrence": 1.8,
        "RWKV-7 forward+backward vs its recurrence": 4,
        "RetNet forward vs parallel and recurrent": 2,
        "RetNet forward+backward vs parallel and recurrent": 2,
        "Mamba-1 forward vs sdpa, 8,192 tokens": 1.1,
        "Hyena forward vs sdpa, 8,192 tokens": 2.4,
        "growth of forward, 2,048 to 8,192 tokens": 4.8,
        "growth of forward+backward, 2,048 to 8,192 tokens": 4.8,
        "decoding a token, after 8,192 / after 512 (RetNet, Mamba, RWKV)": 1.15,
        "Mamba-1 decoding vs transformers": 1.3,
        "Mamba-2 decoding vs transformers": 1.6,
        "Hyena's long convolution, a token vs a dot product over the cache, 8,192 tokens": 3,
        "Hyena decoding vs computing all tokens again, 8,192 tokens": 100,
        "top-k vs sdpa, decoding against 32,768 keys": 1.8,
        "top-k blocks vs sdpa, prefill of 8,192 tokens": 2,
    }.items():
        assert claims[words] == must


def test_lengths_go_from_512_to_32768() -> None:
    assert lengths_of(FORWARD, quick=False) == [512, 1024, 2048, 4096, 8192, 16384, 32768]


def test_the_report_holds_goals_first_and_every_picture(tmp_path: Path) -> None:
    cases = [case(), case(mode=DECODE)]
    results = [result(one.label, {"first": 2.0, "same": 3.0, "nothing to compare": 1.0}) for one in cases]
    points = [
        Point(kind, mode, length, 1e-3 * length, 1000 * length)
        for kind in KINDS
        for mode in (FORWARD, TRAINING)
        for length in (512, 1024)
    ]
    report = MixersReport("moe-hf bench --suite mixers", {"cores": 2}, cases, results, points, {FULL: 4.0, TOPK: 4.02})
    written = write_report(report, tmp_path)
    assert [path.name for path in written] == [
        "report.md",
        "report.json",
        "time_by_length.png",
        "memory_by_length.png",
    ]
    assert all(path.stat().st_size > 0 for path in written)
    text = written[0].read_text()
    assert text.index("## Numbers to reach") < text.index("![time_by_length](time_by_length.png)")
    assert "| faster | >= 1 | 2.00 to 2.00 (worst: two, forward, 8 tokens, width 64) | met |" in text
    assert "| top-k of 64 keys | 4.020 | +0.50% |" in text
    data = json.loads(written[1].read_text())
    assert data["goals"][0]["verdict"] == "met"
    assert len(data["lengths"]) == len(points)


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert draw_lengths([], tmp_path) == []


def test_perplexities_are_of_one_model_with_every_kind_of_attention() -> None:
    found = perplexities(Schooling(steps=1, batch_size=1, heldout=1))
    assert {FULL, TOPK} <= set(found)
    assert all(1 < value < 2048 and math.isfinite(value) for value in found.values())
    assert abs(found[TOPK] / found[FULL] - 1) < 0.05
