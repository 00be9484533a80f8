"""Results that a JSON file holds without loss."""

import json

import pytest

from moe_hf.bench.harness.results import to_json
from moe_hf.bench.harness.timing import Samples
from tests.bench.measured import group, report


def test_ratios_are_times_faster_than_the_best_and_time_over_the_roof():
    one = group()
    assert one.best().name == "grouped_mm"
    assert one.speedup("auto", one.best()).of_medians == pytest.approx(1.5)
    assert one.speedup("auto", one.arm("eager")).of_medians == pytest.approx(3.0)
    assert one.to_roof("auto").of_medians == pytest.approx(0.8)
    # 1e6 FLOPs in 2 ms against 5e5 in 0.5 ms.
    assert one.arm("auto").gflops == pytest.approx(0.5)
    assert one.gemm_share("auto") == pytest.approx(0.5)


def test_json_holds_every_sample_and_what_is_asked_of_them():
    before = report(group(), group(mode="training", saved=640, peaks=5000), interrupted=True, further={"used": [1, 2]})
    data = json.loads(json.dumps(to_json(before)))
    assert data["used"] == [1, 2]
    assert "further" not in data
    assert data["interrupted"]
    for written, measured in zip(data["groups"], before.groups, strict=True):
        assert written["size"] == measured.size._asdict()
        for arm, of in zip(written["arms"], measured.arms, strict=True):
            assert {**arm, "samples": Samples(**arm["samples"])} == {**arm, **of._asdict()}
    assert data["groups"][0]["arms"][2]["median"] == pytest.approx(2e-3)
