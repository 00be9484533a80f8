"""The heads: the losses and what they are made of, and classification of padded sequences."""

import logging

import pytest
import torch
from torch.nn.functional import cross_entropy

from moe_hf import ConfigError, GPT2WithMoE, GPT2WithMoEConfig, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.ops.routing.balance import load_balance_loss, router_z_loss


@pytest.fixture
def labels(token_ids: torch.Tensor) -> torch.Tensor:
    labels = token_ids.clone()
    labels[0, :3] = -100
    labels[2, 5:] = -100
    return labels


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


class TestCausalLoss:
    def test_is_exactly_torch_s_cross_entropy_and_nothing_is_said(self, tiny_model, token_ids, labels, caplog) -> None:
        # The class is not called ...ForCausalLM, from which transformers would guess the loss.
        with caplog.at_level(logging.WARNING):
            out = tiny_model()(token_ids, labels=labels)
        assert out.loss.equal(next_token_loss(out.logits, labels))
        assert not caplog.records
        assert tiny_model().loss_type == "ForCausalLM"

    def test_num_items_in_batch_is_what_it_is_divided_by(self, tiny_model, token_ids, labels) -> None:
        out = tiny_model()(token_ids, labels=labels, num_items_in_batch=torch.tensor(40))
        torch.testing.assert_close(out.loss, next_token_loss(out.logits, labels, "sum") / 40)

    @pytest.mark.parametrize("with_labels", [True, False])
    def test_shifted_labels_are_taken_as_they_are(self, tiny_model, token_ids, labels, with_labels: bool) -> None:
        out = tiny_model()(token_ids, labels=token_ids if with_labels else None, shift_labels=labels)
        torch.testing.assert_close(out.loss, cross_entropy(out.logits.flatten(0, 1), labels.flatten()))

    def test_no_labels_no_loss(self, tiny_model, token_ids) -> None:
        assert tiny_model()(token_ids).loss is None

    @pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])])
    def test_logits_of_some_positions_only(self, tiny_model, token_ids, keep) -> None:
        model = tiny_model()
        kept = slice(-keep, None) if isinstance(keep, int) else keep
        torch.testing.assert_close(model(token_ids, logits_to_keep=keep).logits, model(token_ids).logits[:, kept])


COEFS = {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.25}


class TestRouterLosses:
    def test_join_in_training_and_not_in_eval(self, tiny_model, token_ids, labels) -> None:
        model = tiny_model(**COEFS)
        mask = (labels != 7).long()
        given = {"labels": labels, "attention_mask": mask, "output_router_logits": True}
        evaluated = model(token_ids, **given)
        trained = model.train()(token_ids, **given)
        balance = load_balance_loss(trained.router_logits, 2, mask)
        z = router_z_loss(trained.router_logits, mask)
        task = next_token_loss(trained.logits, labels)
        assert evaluated.loss.equal(next_token_loss(evaluated.logits, labels))
        torch.testing.assert_close(trained.loss, task + 0.5 * balance + 0.25 * z)
        for out in (evaluated, trained):
            torch.testing.assert_close(out.aux_loss, balance)

    def test_are_on_by_default_while_training(self, tiny_model, token_ids) -> None:
        model = tiny_model().train()
        out = model(token_ids, labels=token_ids)
        extra = 0.01 * out.aux_loss + 0.001 * router_z_loss(out.router_logits)
        torch.testing.assert_close(out.loss, next_token_loss(out.logits, token_ids) + extra)
        assert out.aux_loss.requires_grad

    def test_are_on_with_shifted_labels_alone(self, tiny_model, token_ids) -> None:
        assert tiny_model().train()(token_ids, shift_labels=token_ids).aux_loss is not None

    @pytest.mark.parametrize(
        ("training", "requested", "with_labels", "coefs", "recorded"),
        [
            (True, None, True, 1, True),
            (True, None, False, 1, False),
            (True, None, True, 0, False),
            (True, True, True, 0, True),
            (True, False, True, 1, False),
            (False, None, True, 1, False),
            (False, True, False, 1, True),
        ],
    )
    def test_are_recorded_when_they_matter(
        self, tiny_model, token_ids, training, requested, with_labels, coefs, recorded
    ) -> None:
        model = tiny_model(router_aux_loss_coef=coefs, router_z_loss_coef=coefs).train(training)
        out = model(token_ids, labels=token_ids if with_labels else None, output_router_logits=requested)
        assert (out.aux_loss is not None) == (out.router_logits is not None) == recorded

    def test_the_call_overrules_the_configuration(self, tiny_model, token_ids) -> None:
        model = tiny_model(output_router_logits=True)
        assert model(token_ids).router_logits is not None
        assert model(token_ids, output_router_logits=False).router_logits is None

    def test_padding_does_not_count_with_a_cache_either(self, tiny_model, token_ids) -> None:
        model, mask = tiny_model(), torch.ones_like(token_ids)
        mask[1, 5:] = 0
        cache = model(token_ids[:, :3]).past_key_values
        out = model(token_ids[:, 3:], attention_mask=mask, past_key_values=cache, output_router_logits=True)
        expected = load_balance_loss(out.router_logits, model.config.num_experts_per_tok, mask[:, 3:])
        assert out.aux_loss.item() == expected.item()

    def test_without_weights_the_loss_is_the_task_s_alone(self, tiny_model, token_ids) -> None:
        model = tiny_model(router_aux_loss_coef=0, router_z_loss_coef=0).train()
        out = model(token_ids, labels=token_ids, output_router_logits=True)
        torch.testing.assert_close(out.loss, next_token_loss(out.logits, token_ids))

    @pytest.mark.parametrize("loss", ["router_aux_loss_coef", "router_z_loss_coef"])
    def test_gradients_reach_every_router_and_nothing_else_hides_them(self, tiny_model, token_ids, loss) -> None:
        # With k = 1 and normalised weights the task gives the router no gradient at all.
        coefs = {"router_aux_loss_coef": 0, "router_z_loss_coef": 0}
        gradients = []
        for coef in (0, 1):
            model = tiny_model(num_experts_per_tok=1, **{**coefs, loss: coef}).train()
            model(token_ids, labels=token_ids).loss.backward()
            gradients.append([model.model.layers[i].mlp.gate.weight.grad for i in model.config.sparse_layers])
        assert all(gradient.abs().max() < 1e-7 for gradient in gradients[0])
        assert all(gradient.abs().max() > 1e-4 for gradient in gradients[1])

    def test_a_frozen_router_stays_frozen(self, tiny_model, token_ids) -> None:
        model = tiny_model(router_aux_loss_coef=0, router_z_loss_coef=0).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("gate" not in name)
        model(token_ids, labels=token_ids).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == ("gate" in name)

    def test_micro_batches_add_up_to_the_whole(self, tiny_model, token_ids, labels) -> None:
        # Trainer adds up the losses of an optimizer step, each divided by the tokens of all of them.
        model = tiny_model(**COEFS).train()
        total = (labels[:, 1:] != -100).sum()
        parts = []
        for row in range(3):
            given = {"labels": labels[row : row + 1], "output_router_logits": True}
            out = model(token_ids[row : row + 1], num_items_in_batch=total, **given)
            share = (labels[row, 1:] != -100).sum() / total
            extra = 0.5 * out.aux_loss + 0.25 * router_z_loss(out.router_logits)
            parts.append((out.loss, share, extra))
        whole = model(token_ids, labels=labels, num_items_in_batch=total)
        task = next_token_loss(whole.logits, labels)
        torch.testing.assert_close(torch.stack([share for _, share, _ in parts]).sum(), torch.tensor(1.0))
        weighted = torch.stack([share * extra for _, share, extra in parts]).sum()
        torch.testing.assert_close(torch.stack([loss for loss, _, _ in parts]).sum(), task + weighted)

    @pytest.mark.parametrize("steps", [1, 4])
    def test_accumulation_does_not_multiply_them(self, tiny_model, token_ids, steps: int) -> None:
        # The same batch `steps` times is the same optimizer step, whatever `steps`.
        model = tiny_model(**COEFS).train()
        total = steps * token_ids[:, 1:].numel()
        for _ in range(steps):
            model(token_ids, labels=token_ids, num_items_in_batch=torch.tensor(total)).loss.backward()
        reference = tiny_model(**COEFS).train()
        reference(token_ids, labels=token_ids).loss.backward()
        for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)

    def test_balance_restores_a_collapsed_router(self, tiny_model, token_ids) -> None:
        # Weights on the mean direction push every token to expert 0; the loss alone pulls them apart.
        model = tiny_model(router_aux_loss_coef=1.0, num_experts_per_tok=1, num_hidden_layers=1).train()
        gate = model.model.layers[0].mlp.gate.weight
        torch.nn.init.normal_(gate, std=0.01)
        model.model.layers[0].post_attention_layernorm.bias.data.fill_(1.0)
        gate.data[0] += 0.1
        optimizer = torch.optim.SGD([gate], lr=0.05)
        seen = []
        for _ in range(30):
            out = model(token_ids, labels=token_ids)
            seen.append(out.aux_loss.item())
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        assert seen[0] > 2
        assert min(seen) < 1.3


class TestSequenceClassification:
    @pytest.fixture
    def make(self, tiny_model):
        return lambda **overrides: tiny_model(GPT2WithMoEForSequenceClassification, num_labels=3, **overrides)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("taps", [0, 3])
    def test_reads_the_last_real_token_whatever_the_padding(self, make, token_ids, side: str, taps: int) -> None:
        model = make(mixer_short_conv=taps)
        padding = torch.zeros(3, 4, dtype=torch.long)
        parts = [padding, token_ids] if side == "left" else [token_ids, padding]
        padded = torch.cat(parts, dim=1)
        mask = (padded != 0).long()
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(padded, attention_mask=mask, position_ids=position_ids).logits
        torch.testing.assert_close(out, model(token_ids).logits, atol=2e-5, rtol=1e-4)

    def test_finds_the_end_by_the_pad_id_without_a_mask(self, make, token_ids) -> None:
        model = make()
        rows = token_ids.clone()
        rows[0, 4:] = 0
        rows[1, 2] = 0
        out = model(rows).logits
        torch.testing.assert_close(out[:1], model(rows[:1, :4]).logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(out[1:2], model(rows[1:2]).logits, atol=2e-5, rtol=1e-4)

    def test_a_row_of_nothing_but_padding_is_finite(self, make) -> None:
        assert make()(torch.zeros(2, 5, dtype=torch.long)).logits.isfinite().all()

    def test_several_sequences_need_a_pad_id_or_a_mask(self, make, token_ids) -> None:
        model = make(pad_token_id=None)
        with pytest.raises(ConfigError, match="pad_token_id=None cannot classify 3 sequences"):
            model(token_ids)
        assert model(token_ids[:1]).logits.shape == (1, 3)
        assert model(token_ids, attention_mask=torch.ones_like(token_ids)).logits.shape == (3, 3)
        embeds = model.model.embed_tokens(token_ids)
        torch.testing.assert_close(model(inputs_embeds=embeds).logits, make()(token_ids).logits)

    @pytest.mark.parametrize(
        ("problem", "num_labels", "target"),
        [
            ("single_label_classification", 3, torch.tensor([0, 2, 1])),
            ("multi_label_classification", 3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
            ("regression", 1, torch.tensor([0.5, -1.0, 2.0])),
        ],
    )
    def test_the_loss_is_torch_s_own(self, tiny_model, token_ids, problem, num_labels, target) -> None:
        model = tiny_model(GPT2WithMoEForSequenceClassification, num_labels=num_labels)
        out = model(token_ids, labels=target)
        expected = {
            "single_label_classification": lambda: cross_entropy(out.logits, target),
            "multi_label_classification": lambda: torch.nn.functional.binary_cross_entropy_with_logits(
                out.logits, target
            ),
            "regression": lambda: torch.nn.functional.mse_loss(out.logits.squeeze(), target),
        }[problem]()
        torch.testing.assert_close(out.loss, expected)
        assert model.config.problem_type == problem

    def test_router_losses_join_in_training(self, make, token_ids) -> None:
        target = torch.tensor([0, 2, 1])
        losses = [
            make(router_aux_loss_coef=coef, router_z_loss_coef=0).train()(token_ids, labels=target).loss.item()
            for coef in (0, 1)
        ]
        # The balance loss of an uneven router is above 1.
        assert 1.0 < losses[1] - losses[0] < 4.0
        assert make(router_aux_loss_coef=9)(token_ids, labels=target).loss.item() == pytest.approx(losses[0])

    def test_trainer_divides_its_loss_by_the_accumulation_steps(self, make) -> None:
        # Trainer reads this where a forward takes **kwargs; the loss ignores num_items_in_batch.
        assert make().accepts_loss_kwargs is False


def test_a_head_reads_the_configuration_of_its_model_unless_it_names_another() -> None:
    class Narrower(GPT2WithMoEConfig):
        pass

    class Head(GPT2WithMoE):
        model_class = GPT2WithMoEModel

    class NarrowerHead(Head):
        model_class = GPT2WithMoEModel
        config_class = Narrower

    assert (Head.config_class, NarrowerHead.config_class) == (GPT2WithMoEConfig, Narrower)
