"""Results that a JSON file holds without loss."""

import json
from pathlib import Path

import pytest

from moe_hf.bench.harness.arms import (
    OWN,
    ROOF,
    TRAINING,
)
from moe_hf.bench.harness.results import from_json, to_json
from moe_hf.bench.speed.sizes import Size, expert_gradient_bytes
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


def test_json_gives_the_same_report_back():
    before = report(group(), group(mode="training", saved=640, peaks=5000), interrupted=True, further={"used": [1, 2]})
    data = json.loads(json.dumps(to_json(before)))
    assert from_json(data, Size, ["used"]) == before
    assert data["used"] == [1, 2]
    assert "further" not in data
    assert data["groups"][0]["arms"][2]["median"] == pytest.approx(2e-3)


def test_a_report_of_version_0_1_is_read_and_its_returned_gradients_are_the_backends_own():
    data = json.loads((Path(__file__).parents[3] / "docs" / "data" / "performance_cpu.json").read_text())
    found = from_json(data, Size)
    assert len(found.groups) == len(data["groups"])
    group = next(one for one in found.groups if one.mode == TRAINING and one.case == "experts")
    returned = expert_gradient_bytes(group.size)
    assert {arm.family: arm.gradient_bytes for arm in group.arms}[OWN] == returned
    assert [arm.gradient_bytes for arm in group.arms if arm.family == ROOF] == [0]
