"""The bare training step, its CPU seconds in turns, and the dense GPT-2."""

import warnings
from typing import Any

import pytest
import torch

from moe_hf.bench.harness.training import cpu_seconds, dense_gpt2, train_step, update

TINY: dict[str, Any] = {"vocab_size": 11, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}


def test_the_dense_model_has_no_dropout_and_names_its_loss():
    model = dense_gpt2(**TINY, bos_token_id=None, eos_token_id=None)
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (0.0, 0.0, 0.0)
    ids_BS = torch.arange(8)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(input_ids=ids_BS, labels=ids_BS).loss > 0


def test_a_step_lowers_the_loss_and_leaves_no_gradient():
    torch.manual_seed(0)
    model = dense_gpt2(**TINY, bos_token_id=None, eos_token_id=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    ids_BS = torch.arange(8)[None]
    before = model(input_ids=ids_BS, labels=ids_BS).loss.item()
    train_step(model, optimizer, ids_BS)
    assert model(input_ids=ids_BS, labels=ids_BS).loss.item() < before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_update_goes_no_further_than_a_norm_of_one():
    model = dense_gpt2(**TINY, bos_token_id=None, eos_token_id=None)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    update(model, torch.optim.SGD(model.parameters(), lr=1.0))
    moved = [(new.detach() - old).norm() for new, old in zip(model.parameters(), before, strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(1.0, rel=1e-3)


def test_calls_take_turns_and_the_first_turn_does_not_count(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("time.process_time", lambda: clock["now"])
    order = []

    def call(name, first, later):
        def run():
            clock["now"] += later if name in order else first
            order.append(name)

        return run

    found = cpu_seconds({"a": call("a", 100.0, 1.0), "b": call("b", 200.0, 3.0)}, turns=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": 1.0, "b": 3.0}
