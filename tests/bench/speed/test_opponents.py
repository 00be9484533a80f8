"""The ways of computing experts that are measured."""

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.speed.experts_case import build_experts
from tests.bench.measured import SIZE, reasons


def test_batched_mm_is_skipped_where_it_would_gather_too_much():
    group = build_experts(SIZE, "forward", Options(memory_limit=1000))
    assert "gathers" in reasons(group)["batched_mm"]
    assert "batched_mm" not in [arm.name for arm in group.arms]
