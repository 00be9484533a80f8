"""Routers are found in every class that has them, and what they return is read in each form."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, JetMoeConfig

from moe_hf.models.found_routers import choice_of, find_routers
from tests.models.native_moes import NATIVE_MOES, native_moe

SPARSE = {"deepseek_v3": 1, "jamba": 1}


@pytest.mark.parametrize("kind", list(NATIVE_MOES))
def test_every_sparse_layer_has_one(kind: str) -> None:
    assert len(find_routers(native_moe(kind))) == SPARSE.get(kind, 2)


def test_what_jetmoe_returns_besides_is_left_out() -> None:
    config = JetMoeConfig(vocab_size=61, hidden_size=16, intermediate_size=20, num_hidden_layers=2, kv_channels=8)
    config.num_key_value_heads = config.num_experts_per_tok = 2
    config.num_local_experts = 4
    model = AutoModelForCausalLM.from_config(config)
    outputs: list[Any] = []
    routers = find_routers(model)
    if not all(name.endswith("router") for name in routers):
        pytest.skip("this transformers declares other modules of JetMoE as its routers")
    for router in routers.values():
        router.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(torch.arange(3, 9)[None])
    assert outputs
    for choice in (choice_of(output, 2) for output in outputs):
        assert (choice.logits_TE.shape, choice.expert_TK.shape, choice.weight_TK.shape) == ((6, 4), (6, 2), (6, 2))


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
