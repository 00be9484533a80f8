"""A plan knows every tensor and count of the model before a number of it is read."""

import pytest
import torch

from moe_hf.models.dense.lazy_tensors import Sliced
from moe_hf.models.upcycling.native import plan_native
from moe_hf.models.upcycling.opened import open_model
from moe_hf.models.upcycling.weights import written_size
from tests.models.upcycling.conftest import MakeDense


def test_planning_reads_nothing(dense: MakeDense, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(str(dense("llama")))
    monkeypatch.setattr(Sliced, "read", lambda self: pytest.fail("a tensor was read"))
    plan = plan_native(opened, num_experts=4)
    assert sum(written_size(value, torch.float32) for value in plan.state.values()) == 4 * plan.counts.total
    assert plan.counts.source < plan.counts.active < plan.counts.total
    assert plan.changes == []
