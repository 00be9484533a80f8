"""The card says what the model was made of, how large it is, and whether it still computes the same."""

from pathlib import Path

import pytest

from moe_hf.models.upcycling.model_card import model_card
from moe_hf.models.upcycling.native import plan_native
from moe_hf.models.upcycling.opened import open_model
from moe_hf.models.upcycling.own import plan_own
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
    assert "| layers | 3 sparse, 0 dense |" in card
    assert f"| parameters | {plan.counts.total:,} |" in card
    assert 'from_pretrained("YOUR-NAME/moe")' in card
    assert "import moe_hf" not in card


def test_a_model_of_this_package_needs_it(dense: MakeDense) -> None:
    card = model_card(
        "owner/gpt2", "moe", plan_own(open_model(str(dense("llama"))), num_experts=2), has_tokenizer=False
    )
    assert "import moe_hf" in card
    assert "Tokenizer" not in card


def test_a_folder_or_a_package_is_no_model_of_the_hub(dense: MakeDense) -> None:
    folder: Path = dense("llama")
    plan = plan_native(open_model(str(folder)), num_experts=2)
    for source, name in ((str(folder), "dense"), ("smollm2", "smollm2")):
        card = model_card(source, "moe", plan)
        assert "base_model" not in card
        assert f"the dense model `{name}`" in card
