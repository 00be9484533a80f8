"""The balance losses of a model: each reads 1.0 (or 0.0) at balance, masked, per layer, over the batch it names."""

import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

from moe_hf.models.router_losses import BalanceWindow, router_losses
from moe_hf.ops.routing.balance import cv_squared, load_balance_loss, router_z_loss

LEARNED = ["top_k", "switch", "sigmoid_bias"]
UNTAUGHT = ["hash", "expert_choice", "expert_threshold"]
LOSSES = {"batch": 1.0, "global_batch": 1.0, "sequence": 1.0, "cv_squared": 0.0}


class Recorded(dict):
    """What the skeleton returns, as far as the losses read it."""

    __getattr__ = dict.__getitem__


def recorded(logits: list[torch.Tensor], experts: list[torch.Tensor], batch_size: int = 1) -> Recorded:
    hidden = torch.zeros(batch_size, len(logits[0]) // batch_size, 1)
    return Recorded(router_logits=tuple(logits), router_experts=tuple(experts), last_hidden_state=hidden)


def rotation(experts: int, k: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that prefer experts t, t + 1, ... in turn: perfectly balanced in every sequence."""
    logits = torch.zeros(experts, experts)
    chosen = torch.stack([(torch.arange(k) + t) % experts for t in range(experts)])
    logits.scatter_(1, chosen, 2.0)
    return logits.repeat(batch_size, 1), chosen.repeat(batch_size, 1)


@pytest.fixture
def one_sparse_layer(tiny_config):
    return lambda **fields: tiny_config(num_hidden_layers=2, **fields)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("router", ["top_k", "sigmoid_bias"])
@pytest.mark.parametrize(("experts", "k", "batch"), [(4, 1, 1), (8, 2, 3), (5, 4, 2)])
def test_balance_reads_the_same_whatever_the_sizes(one_sparse_layer, kind, router, experts, k, batch) -> None:
    config = one_sparse_layer(router_balance_loss=kind, router_type=router, num_experts=experts, num_experts_per_tok=k)
    logits, chosen = rotation(experts, k, batch)
    outputs = recorded([logits], [chosen], batch)
    for window in (None, BalanceWindow()):
        for _ in range(2):
            losses = router_losses(outputs, config, None, window=window)
            assert losses.balance.item() == pytest.approx(LOSSES[kind], abs=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_padding_does_not_count(one_sparse_layer, kind) -> None:
    config = one_sparse_layer(router_balance_loss=kind)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    poisoned = logits.clone()
    poisoned[mask == 0] = 50.0
    real = logits[mask == 1]
    expected = router_losses(recorded([real], [real.topk(2).indices], 2), config, None)
    poisoned = poisoned.flatten(0, 1)
    got = router_losses(recorded([poisoned], [poisoned.topk(2).indices], 2), config, mask)
    torch.testing.assert_close(got.balance, expected.balance)
    torch.testing.assert_close(got.z, expected.z)


@pytest.mark.parametrize("router", LEARNED)
@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_reaches_every_learned_router(tiny_model, token_ids, router, kind) -> None:
    k = 1 if router == "switch" else 2
    model = tiny_model(router_type=router, num_experts_per_tok=k, router_balance_loss=kind).train()
    model(token_ids, labels=token_ids).aux_loss.backward()
    for layer in model.config.sparse_layers:
        assert model.model.layers[layer].mlp.gate.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("router", UNTAUGHT)
def test_routers_that_a_loss_cannot_teach_have_none(tiny_model, token_ids, router) -> None:
    model = tiny_model(router_type=router, router_z_loss_coef=0.0).train()
    out = model(token_ids, labels=token_ids, output_router_logits=True)
    assert out.aux_loss is None
    assert out.loss.equal(model.loss_function(out.logits, token_ids, vocab_size=61))


def test_hash_routed_first_layers_are_left_out(tiny_model, token_ids) -> None:
    model = tiny_model(router_num_hash_layers=1).train()
    out = model(token_ids, labels=token_ids)
    torch.testing.assert_close(out.aux_loss, load_balance_loss(out.router_logits[1:], 2))
    extra = 0.01 * out.aux_loss + 0.001 * router_z_loss(out.router_logits[1:])
    torch.testing.assert_close(out.loss, model.loss_function(out.logits, token_ids, vocab_size=61) + extra)


def test_one_sequence_s_collapse_shows_in_the_sequence_loss_alone(one_sparse_layer) -> None:
    # Each sequence stays with one expert, a different one each: over the batch that is balanced.
    logits = torch.full((8, 4), -20.0)
    for row in range(4):
        logits[2 * row : 2 * row + 2, row] = 20.0
    outputs = recorded([logits], [logits.argmax(-1, keepdim=True)], batch_size=4)
    config = {"num_experts_per_tok": 1}
    assert router_losses(outputs, one_sparse_layer(**config), None).balance.item() == pytest.approx(1.0)
    sequence = one_sparse_layer(router_balance_loss="sequence", **config)
    assert router_losses(outputs, sequence, None).balance.item() == pytest.approx(4.0)


def test_the_window_lets_micro_batches_of_one_domain_each_be_balanced_together(one_sparse_layer) -> None:
    config = one_sparse_layer(router_balance_loss="global_batch", num_experts=2, num_experts_per_tok=1)
    one, other = torch.tensor([[9.0, 0.0]] * 4), torch.tensor([[0.0, 9.0]] * 4)
    window = BalanceWindow()
    first = router_losses(recorded([one], [one.argmax(-1, keepdim=True)]), config, None, window=window).balance
    second = router_losses(recorded([other], [other.argmax(-1, keepdim=True)]), config, None, window=window).balance
    assert first.item() == pytest.approx(2.0, abs=1e-3)
    assert second.item() == pytest.approx(1.0, abs=1e-3)
    window.reset()
    assert router_losses(
        recorded([other], [other.argmax(-1, keepdim=True)]), config, None, window=window
    ).balance.item() == pytest.approx(2.0, abs=1e-3)


def test_evaluation_leaves_the_window_alone(one_sparse_layer) -> None:
    config = one_sparse_layer(router_balance_loss="global_batch", num_experts=2, num_experts_per_tok=1)
    one, window = torch.tensor([[9.0, 0.0]] * 4), BalanceWindow()
    router_losses(recorded([one], [one.argmax(-1, keepdim=True)]), config, None, training=False, window=window)
    other = one.flip(-1)
    loss = router_losses(recorded([other], [other.argmax(-1, keepdim=True)]), config, None, window=window).balance
    assert loss.item() == pytest.approx(2.0, abs=1e-3)


def test_importance_is_what_cv_squared_reads() -> None:
    assert cv_squared(torch.tensor([2.0, 2.0, 2.0])).item() == 0
    assert cv_squared(torch.tensor([3.0, 0.0, 0.0])).item() == pytest.approx(2.0)


def _one_rank(rank: int, folder: str, fields: dict) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    from moe_hf import GPT2WithMoEConfig

    logits = torch.tensor([[9.0, 0.0]] * 4) if rank == 0 else torch.tensor([[0.0, 9.0]] * 4)
    outputs = recorded([logits], [logits.argmax(-1, keepdim=True)])
    loss = router_losses(outputs, GPT2WithMoEConfig(**fields), None).balance
    torch.save(loss, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_that_are_balanced_only_together_read_one(tmp_path) -> None:
    fields = {
        "router_balance_loss": "global_batch",
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
    }
    mp.spawn(_one_rank, (str(tmp_path), fields), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True).item() == pytest.approx(1.0, abs=1e-3)
