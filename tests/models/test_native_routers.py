"""The routers of transformers' own classes are found, watched while they train, and moved where they have a bias."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from moe_hf.models.found_routers import LayerChoice, find_routers
from moe_hf.models.native_routers import BiasUpkeep, NativeRouters, _bias_of
from moe_hf.ops.routing.balance import load_balance_loss
from tests.models.native_moes import NATIVE_MOES, native_moe

IDS = torch.randint(3, 61, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", list(NATIVE_MOES))
def test_every_class_tells_what_its_routers_chose(kind: str) -> None:
    model = native_moe(kind).train()
    routers = NativeRouters(model)
    with routers.recording() as choices:
        model(IDS)
    assert [tuple(choice.logits_TE.shape) for choice in choices] == [(36, 4)] * len(find_routers(model))
    assert all(choice.expert_TK.shape == (36, 2) for choice in choices)
    assert all(choice.logits_TE.requires_grad for choice in choices)
    model(IDS)
    assert len(choices) == len(find_routers(model))
    assert not any(module._forward_hooks for module in find_routers(model).values())
    if not routers.have_biases:
        expected = load_balance_loss([choice.logits_TE for choice in choices], 2)
        torch.testing.assert_close(routers.balance_loss(choices), expected)


def test_a_dense_model_has_none() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    assert not NativeRouters(model)
    assert not NativeRouters(nn.Linear(2, 2))
    with NativeRouters(model).recording() as choices:
        model(IDS)
    assert choices == []


def test_padding_does_not_count() -> None:
    model = native_moe("mixtral").train()
    routers = NativeRouters(model)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    with routers.recording() as choices:
        model(IDS, attention_mask=mask)
    expected = load_balance_loss([choice.logits_TE for choice in choices], 2, mask)
    torch.testing.assert_close(routers.balance_loss(choices, mask), expected)
    assert not routers.balance_loss(choices).isclose(expected)


def test_one_layer_s_collapse_does_not_hide_behind_another_s() -> None:
    routers = NativeRouters(native_moe("mixtral"))

    def collapsed(expert: int) -> LayerChoice:
        logits = torch.full((8, 4), -20.0)
        logits[:, [expert, (expert + 1) % 4]] = 20.0
        return LayerChoice(logits, *logits.softmax(dim=-1).topk(2))

    # Pooled over both layers every expert would get its fair share.
    assert routers.balance_loss([collapsed(0), collapsed(2)]).item() == pytest.approx(2.0)


def test_checkpointing_counts_nothing_twice(checkpointed) -> None:
    model = checkpointed(native_moe("mixtral").train())
    routers = NativeRouters(model)
    with routers.recording() as choices:
        loss = model(IDS, labels=IDS).loss + routers.balance_loss(choices)
    loss.backward()
    assert len(choices) == 2
    assert all(router.weight.grad.abs().sum() > 0 for router in find_routers(model).values())


class TestBiases:
    @pytest.fixture
    def model(self):
        return native_moe("deepseek_v3").train()

    def test_move_towards_an_even_load_once_per_step(self, model) -> None:
        routers = NativeRouters(model)
        assert routers.have_biases
        upkeep = BiasUpkeep(model, routers, update_speed=0.25)
        (router,) = find_routers(model).values()
        with routers.recording() as choices:
            model(IDS)
        model(IDS)
        count = torch.bincount(choices[0].expert_TK.flatten(), minlength=4).float()
        upkeep.step()
        step = (count.mean() - count).sign()
        expected = 0.25 * (step - step.mean())
        assert expected.abs().sum() > 0
        assert router.e_score_correction_bias.equal(expected)
        # Nothing was seen since.
        upkeep.step()
        assert router.e_score_correction_bias.equal(expected)
        upkeep.close()
        model(IDS)
        upkeep.step()
        assert router.e_score_correction_bias.equal(expected)

    def test_do_not_move_by_what_is_evaluated_or_padding(self, model) -> None:
        upkeep = BiasUpkeep(model, NativeRouters(model))
        (router,) = find_routers(model).values()
        model.eval()(IDS)
        upkeep.step()
        assert router.e_score_correction_bias.abs().sum() == 0
        model.train()(IDS, attention_mask=torch.zeros_like(IDS).index_fill(1, torch.tensor([0]), 1))
        counted = upkeep._counts[0]
        assert counted is not None
        assert counted.sum() == 2 * len(IDS)

    def test_a_forward_that_fails_leaves_no_hook_behind(self, model) -> None:
        upkeep = BiasUpkeep(model, NativeRouters(model))
        (router,) = find_routers(model).values()
        for _ in range(3):
            with pytest.raises(IndexError):
                model(torch.full_like(IDS, 10_000))
        model(IDS)
        upkeep.close()
        assert not router._forward_hooks
        counted = upkeep._counts[0]
        assert counted is not None
        assert counted.sum() == 2 * IDS.numel()

    def test_are_found_where_a_class_keeps_them_in_the_layer_around_the_router(self) -> None:
        block = nn.Module()
        block.gate = nn.Linear(3, 4)
        block.e_score_correction_bias = nn.Buffer(torch.zeros(4))
        model = nn.Sequential(block)
        found = _bias_of(model, "0.gate", block.gate)
        assert found is not None
        assert found.value is block.e_score_correction_bias
        assert _bias_of(nn.Sequential(block.gate), "0", block.gate) is None
