"""Routers are found in every class that has them, and what they return is read in each form."""

import pytest
import torch
from torch import nn

from moe_hf.models.found_routers import choice_of, find_routers
from tests.models.native_moes import NATIVE_MOES, native_moe

SPARSE = {"deepseek_v3": 1, "jamba": 1}


@pytest.mark.parametrize("kind", list(NATIVE_MOES))
def test_every_sparse_layer_has_one(kind: str) -> None:
    assert len(find_routers(native_moe(kind))) == SPARSE.get(kind, 2)


def test_there_is_none_without_experts() -> None:
    assert find_routers(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("form", ["convention", "reversed", "logits alone"])
def test_an_output_is_read_in_whatever_order_it_comes(form: str) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    weight, expert = logits.softmax(dim=-1).topk(2)
    told = (logits, weight, expert)
    choice = choice_of({"convention": told, "reversed": told[::-1], "logits alone": logits}[form], top_k=2)
    assert choice.logits_TE.equal(logits.view(6, 4))
    assert choice.weight_TK.equal(weight.view(6, 2))
    assert choice.expert_TK.equal(expert.view(6, 2))
