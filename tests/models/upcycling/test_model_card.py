"""The card says what the model was made of, how large it is, and whether it still computes the same."""

from pathlib import Path

import pytest

from moe_hf.models.upcycling.model_card import model_card
from moe_hf.models.upcycling.native import plan_native
from moe_hf.models.upcycling.opened import open_model
from tests.models.upcycling.conftest import MakeDense


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("copy", "It gives the source's logits"),
        ("noise", "It does not give the source's logits: expert_init"),
    ],
)
def test_it_tells_whether_the_logits_are_kept(dense: MakeDense, kind: str, text: str) -> None:
    plan = plan_native(open_model(str(dense("llama"))), num_experts=4, expert_init=kind)
    card = model_card("owner/llama", "moe", plan)
    assert text in card
    assert "base_model: owner/llama\n" in card
    assert "| sparse layers | 3 of 3 |" in card
    assert f"| parameters, total | {plan.counts.total / 1e6:.1f}M |" in card


def test_a_folder_or_a_package_is_no_model_of_the_hub(dense: MakeDense) -> None:
    folder: Path = dense("llama")
    plan = plan_native(open_model(str(folder)), num_experts=2)
    for source, name in ((str(folder), "dense"), ("smollm2", "smollm2")):
        card = model_card(source, "moe", plan)
        assert "base_model" not in card
        assert f"the dense model `{name}`" in card
