"""Router states: moved once per optimizer step, by training forwards alone, recomputed layers counted once."""

import pytest
import torch

from moe_hf import GPT2WithMoE
from moe_hf.models.router_states import RouterStates, routers_of


def state(model: GPT2WithMoE) -> torch.Tensor:
    return torch.stack([router.state_E for router in routers_of(model)])


def test_nothing_moves_before_the_step_and_everything_by_it(tiny_model, token_ids) -> None:
    model = tiny_model(router_type="sigmoid_bias").train()
    states = RouterStates(model)
    model(token_ids, labels=token_ids).loss.backward()
    assert state(model).abs().sum() == 0
    states.step()
    assert (state(model).abs().amax(dim=-1) > 0).all()
    moved = state(model).clone()
    states.step()
    assert state(model).equal(moved)
    states.close()


def test_evaluation_does_not_count_and_closed_is_closed(tiny_model, token_ids) -> None:
    model = tiny_model(router_type="sigmoid_bias")
    states = RouterStates(model)
    model(token_ids, labels=token_ids, output_router_logits=True)
    states.step()
    assert state(model).abs().sum() == 0
    states.close()
    model.train()(token_ids, labels=token_ids)
    states.step()
    assert state(model).abs().sum() == 0


@pytest.mark.parametrize("kind", ["sigmoid_bias", "expert_choice", "expert_threshold"])
def test_activation_checkpointing_counts_once(tiny_model, token_ids, checkpointed, kind) -> None:
    moved = []
    for checkpointing in (False, True):
        model = tiny_model(router_type=kind).train()
        if checkpointing:
            checkpointed(model)
        observed = RouterStates(model)
        model(token_ids, labels=token_ids).loss.backward()
        assert observed._num_forwards == 1
        observed.step()
        moved.append(state(model))
    torch.testing.assert_close(moved[0], moved[1])


def test_micro_batches_move_the_bias_like_the_whole_batch(tiny_model, token_ids) -> None:
    moved = []
    for parts in (1, 3):
        model = tiny_model(router_type="sigmoid_bias").train()
        states = RouterStates(model)
        for part in token_ids.chunk(parts):
            model(part, labels=part).loss.backward()
        states.step()
        moved.append(state(model))
    assert moved[0].equal(moved[1])


def test_padding_does_not_count(tiny_model, token_ids) -> None:
    moved = []
    padded = torch.cat([token_ids, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    for ids, mask in ((token_ids, torch.ones_like(token_ids)), (padded, (padded > 0).long())):
        model = tiny_model(router_type="sigmoid_bias").train()
        states = RouterStates(model)
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        states.step()
        moved.append(state(model))
    assert moved[0].equal(moved[1])


def test_the_state_is_saved_and_loaded_also_in_half_precision(tiny_model, token_ids, tmp_path) -> None:
    model = tiny_model(router_type="expert_threshold").train()
    states = RouterStates(model)
    model(token_ids, labels=token_ids).loss.backward()
    states.step()
    model.save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        loaded = GPT2WithMoE.from_pretrained(tmp_path, dtype=dtype)
        assert state(loaded).dtype == torch.float32
        assert state(loaded).equal(state(model))


@pytest.mark.parametrize("kind", ["sigmoid_bias", "expert_choice", "expert_threshold", "hash"])
def test_an_upcycled_model_has_fresh_states_and_the_dense_logits(dense_gpt2, dense_folder, token_ids, kind) -> None:
    model = GPT2WithMoE.from_pretrained(dense_folder, num_experts=4, router_type=kind)
    for router in routers_of(model):
        if kind == "hash":
            assert router.expert_of_id.equal(router.hash_table(61))
        else:
            assert (router.state_E == router.fresh_state).all()
    expected = dense_gpt2()(token_ids).logits
    torch.testing.assert_close(model(token_ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_fresh_models_begin_with_fresh_states(tiny_config) -> None:
    model = GPT2WithMoE(tiny_config(router_type="expert_choice", router_num_hash_layers=1))
    first, second = routers_of(model)
    assert first.expert_of_id.equal(first.hash_table(61))
    assert (second.state_E == -1).all()


@pytest.mark.parametrize("kind", ["sigmoid_bias", "expert_choice"])
def test_a_loss_of_one_s_own_without_labels_moves_the_state_too(tiny_model, token_ids, kind) -> None:
    model = tiny_model(router_type=kind).train()
    before, states = state(model).clone(), RouterStates(model)
    model(token_ids).logits.square().mean().backward()
    states.step()
    assert not state(model).equal(before)


def test_a_batch_of_nothing_but_padding_is_not_observed(tiny_model, token_ids) -> None:
    model = tiny_model(router_type="expert_threshold").train()
    states = RouterStates(model)
    model(token_ids, attention_mask=torch.zeros_like(token_ids), labels=token_ids)
    # Yet it is there to be added to what other ranks saw, who would wait for it.
    assert states._observed
    states.step()
    assert (state(model) == -1).all()
    model(token_ids, labels=token_ids)
    model(token_ids, attention_mask=torch.zeros_like(token_ids), labels=token_ids)
    states.step()
    assert (state(model) > 0).all()
