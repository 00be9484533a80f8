"""The passes over sorted experts agree however rows are cut, and compute no more than they are asked for."""

import pytest
import torch

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import ExpertCall, Needs
from moe_hf.ops.experts.sorted_passes import backward_pass, forward_pass
from tests.ops.experts.problems import F, K, T, routes, stack_for, tokens_for

ACTIVATION = Activation("silu", "concatenated")


def call(kind: str = "skips") -> ExpertCall:
    return ExpertCall(tokens_for(), *routes(kind), stack_for(ACTIVATION), torch.float32)


@pytest.mark.usefixtures("chunking")
def test_keeping_the_pre_activations_changes_no_value() -> None:
    kept: list[torch.Tensor] = []
    out, rows = forward_pass(ACTIVATION, call(), kept.append)
    torch.testing.assert_close(out, forward_pass(ACTIVATION, call(), None)[0])
    assert sum(len(z) for z in kept) == len(rows.slot_N) < T * K
    assert {z.shape[1] for z in kept} == {2 * F}


@pytest.mark.usefixtures("chunking")
def test_only_what_is_needed_is_computed() -> None:
    given, kept = call(), list[torch.Tensor]()
    out, rows = forward_pass(ACTIVATION, given, kept.append)
    whole = backward_pass(ACTIVATION, torch.ones_like(out), given, rows, kept, Needs(True, True, (True,) * 4))
    for place, name in enumerate(("x", "weight", "stack")):
        needs = Needs(*(n == place for n in range(2)), (name == "stack",) * 4)
        part = backward_pass(ACTIVATION, torch.ones_like(out), given, rows, kept, needs)
        for one, other in zip((*part[:2], *part.stack), (*whole[:2], *whole.stack), strict=True):
            assert one is None or torch.equal(one, other)
        assert [one is not None for one in (*part[:2], *part.stack)] == [needs.x, needs.weight, *needs.stack]
    assert whole.weight_TK is not None
    assert whole.weight_TK[given.expert_TK == 5].count_nonzero() == 0
