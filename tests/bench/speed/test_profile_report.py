"""Profiles in words and numbers: hot spots are computed from the shares."""

import pytest

from moe_hf.bench.speed.profile_report import consolidated_text, hot_spots, part_text
from moe_hf.bench.speed.profiles import Operator, Profile
from moe_hf.bench.speed.sizes import Size

SIZE = Size(tokens=16, hidden_size=8, expert_width=16, num_experts=4)


def a_profile(arm, *operators):
    return Profile("moe_layer", "training", arm, SIZE, 2, [Operator(*one) for one in operators], "table")


def test_shares_add_up_and_hot_spots_are_numbers_of_the_profile():
    own = a_profile("auto", ("aten::mm", "gemm", 4, 6.0), ("aten::gelu", "activation", 2, 3.0), ("x", "glue", 2, 1.0))
    other = a_profile("grouped_mm", ("aten::mm", "gemm", 4, 8.0), ("aten::index", "index", 8, 8.0))
    assert own.milliseconds == 5.0
    assert own.shares["gemm"] == pytest.approx(0.6)
    assert sum(own.shares.values()) == pytest.approx(1)
    lines = hot_spots([own, other])
    assert lines[0].startswith("auto, 5.00 ms per step: 60% is matrix multiplication (`aten::mm` 60%); 30% is the act")
    assert "`aten::gelu` with 30.0%. If all such work cost nothing, the step would be 1.67 times faster." in lines[2]
    assert lines[3].startswith("auto takes 3.00 ms less than grouped_mm: gather, scatter and sorting -4.00 ms")


def test_a_part_that_cannot_run_says_so_and_the_consolidated_report_names_the_machine():
    assert "None of the arms can run here." in part_text("moe_layer", [], "moe-hf profile")
    own = a_profile("auto", ("aten::mm", "gemm", 4, 6.0), ("aten::gelu", "activation", 2, 2.0))
    text = consolidated_text({"moe_layer": [own]}, {"processor": "one", "gpu": None, "torch": "2"}, "moe-hf profile")
    assert "Measured on: one, torch 2." in text
    assert "| moe layer: auto | 4.00 | 75.0% | 25.0% |" in text
