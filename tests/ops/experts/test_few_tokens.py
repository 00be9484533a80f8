"""The forms for a decoding step: which are taken when, all equal to the reference."""

import pytest
import torch

from moe_hf.ops.experts import few_tokens as few_tokens_experts
from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.expert_parts import ExpertCall
from moe_hf.ops.experts.few_tokens import few_tokens_experts as few
from moe_hf.ops.experts.reference import reference_experts
from moe_hf.ops.experts.sorted_experts import sorted_experts
from tests.ops.experts.problems import (
    TOLERANCE,
    assert_equal_within,
    routes,
    stack_for,
    tokens_for,
)


@pytest.mark.parametrize("tokens", [1, 4])
def test_decoding_forms_equal_the_reference(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    activation = Activation("silu", "concatenated")
    for kind in ("random", "skips", "one expert", "nothing"):
        for limit, looped in ((0, 0), (2**20, 0), (2**20, 2)):
            monkeypatch.setattr(few_tokens_experts, "GATHERED_BYTES", limit)
            monkeypatch.setattr(few_tokens_experts, "LOOPED_EXPERTS", looped)
            arguments = (tokens_for(tokens), *routes(kind, tokens), stack_for(activation), activation)
            with torch.no_grad():
                expected = reference_experts(*arguments)
                torch.testing.assert_close(sorted_experts(*arguments), expected)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    found = sorted_experts(*arguments)
            assert found.dtype == torch.float32
            assert_equal_within({"out": found}, {"out": expected}, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_each_form_gives_what_the_reference_gives(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    activation = Activation("gelu", "interleaved")
    stack, (expert, weight) = stack_for(activation), routes("one skip", tokens)
    call = ExpertCall(tokens_for(tokens), expert, weight, stack, torch.float32)
    expected = reference_experts(*call[:4], activation)
    # Experts so large that each goes alone.
    monkeypatch.setattr(few_tokens_experts, "rows_per_group", lambda *_: 0)
    found = few(call, activation)
    assert found is not None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("experts", "small"), [(1, True), (2, True), (3, False)])
def test_one_token_visits_few_or_large_experts_one_after_the_other(
    experts: int, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []
    monkeypatch.setattr(few_tokens_experts, "_gathered", lambda *_: gathered.append(1))
    expert, weight = torch.arange(experts)[None], torch.full((1, experts), 0.5)
    call = ExpertCall(tokens_for(1), expert, weight, stack_for(Activation("gelu")), torch.float32)
    found = few(call, Activation("gelu"))
    assert bool(gathered) is not small
    if not small:
        # Of this size the copies of the weights would take longer.
        monkeypatch.setattr(few_tokens_experts, "LOOPED_BYTES", 0)
        found = few(call, Activation("gelu"))
    torch.testing.assert_close(found, reference_experts(*call[:4], Activation("gelu")))


def test_many_tokens_and_small_experts_are_left_to_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    activation = Activation("gelu")
    expert, weight = routes()
    call = ExpertCall(tokens_for(), expert, weight, stack_for(activation), torch.float32)
    monkeypatch.setattr(few_tokens_experts, "GATHERED_BYTES", 0)
    assert few(call, activation) is None
    assert few(call._replace(expert_TK=expert[:0], x_TD=call.x_TD[:0]), activation) is None
