"""Balance loss and label smoothing count by a micro-batch's share of the step, and never in evaluation."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import MixtralForSequenceClassification

from moe_hf.base.errors import ConfigError
from moe_hf.training.loss_terms import LossTerms
from moe_hf.training.metrics import read_metrics
from tests.models.native_moes import NATIVE_MOES, native_moe
from tests.training.tiny import LENGTH, make_trainer, rows, tiny_moe

# Those whose own loss a coefficient weighs.
BALANCED = [kind for kind in NATIVE_MOES if kind != "deepseek_v3"]
COEFFICIENT = 0.5


def step(model, batch, num_items=None, **inputs):
    """Loss and outputs of a micro-batch as a trainer makes them."""
    terms = LossTerms(model)
    given = {"input_ids": batch, "labels": batch, **inputs}
    with terms.watching(given, model.training):
        outputs = model(**given, num_items_in_batch=num_items)
    return terms.added(outputs.loss, outputs, given, num_items, processes=1)


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.stack([row["input_ids"] for row in rows(8)])


@pytest.mark.parametrize("kind", BALANCED)
def test_one_sparse_layer_s_loss_and_gradient_are_transformers_own(batch, kind: str) -> None:
    layers = {"num_hidden_layers": 2 if kind == "jamba" else 1}
    gradients = []
    for asks in (False, True):
        model = native_moe(kind, router_aux_loss_coef=COEFFICIENT, **layers).train()
        if not model.base_model.can_record_outputs.get("router_logits"):
            pytest.skip("this transformers computes no balance loss for the class")
        if asks:
            loss = model(batch, labels=batch, output_router_logits=True).loss
        else:
            loss, outputs = step(model, batch)
            assert len(outputs["router_logits"]) == 1
        loss.backward()
        gradients.append((loss.detach(), *(x.grad for x in model.parameters() if x.grad is not None)))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", BALANCED)
def test_micro_batches_add_up_to_one_balance_loss(batch, kind: str) -> None:
    num_items = torch.tensor(batch[:, 1:].numel())
    model = native_moe(kind, router_aux_loss_coef=COEFFICIENT).train()
    total, balances = 0.0, []
    for part in batch.split(2):
        loss, outputs = step(model, part, num_items)
        total += loss.item()
        balances.append(outputs["aux_loss"].item())
    plain = model.eval()(batch, labels=batch).loss.item()
    # K times, as in transformers' own, where balance reads K.
    assert total == pytest.approx(plain + COEFFICIENT * 2 * sum(balances) / len(balances), rel=1e-4)


def test_a_model_that_asks_for_its_own_loss_gets_it_once(batch) -> None:
    losses = []
    for asks in (False, True):
        model = native_moe("mixtral", router_aux_loss_coef=COEFFICIENT, output_router_logits=asks).train()
        losses.append(step(model, batch)[0].item())
    assert losses[0] == losses[1]


def test_a_model_of_this_package_has_its_own(batch) -> None:
    model = tiny_moe(router_aux_loss_coef=COEFFICIENT).train()
    loss, outputs = step(model, batch)
    assert loss.equal(outputs.loss)


def test_nothing_is_added_or_kept_in_evaluation(batch) -> None:
    model = native_moe("mixtral", router_aux_loss_coef=COEFFICIENT, output_router_logits=True).eval()
    terms = LossTerms(model)
    given = {"input_ids": batch, "labels": batch}
    with terms.watching(given, training=False):
        outputs = model(**given)
    assert given["output_router_logits"] is False
    assert outputs.loss.isclose(cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()))
    assert outputs.router_logits is None
    assert terms._choices == []


def test_processes_are_undone_only_where_targets_are_counted_over_all(batch) -> None:
    model = native_moe("mixtral", router_aux_loss_coef=COEFFICIENT).train()
    terms = LossTerms(model)
    added = []
    for num_items in (None, torch.tensor(batch[:, 1:].numel())):
        given = {"input_ids": batch, "labels": batch}
        with terms.watching(given, True):
            outputs = model(**given)
        loss, _ = terms.added(outputs.loss, outputs, given, num_items, processes=3)
        added.append((loss - outputs.loss).item())
    assert added[1] == pytest.approx(3 * added[0], rel=1e-4)


def test_checkpointing_that_takes_the_gradient_from_the_routers_is_refused(batch) -> None:
    model = native_moe("mixtral", router_aux_loss_coef=COEFFICIENT).train()
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=True))
    with pytest.raises(ConfigError, match="use_reentrant=True is not allowed: the routers' logits carry no gradient"):
        step(model, batch)


def test_a_head_that_labels_sequences_counts_each_of_them(batch) -> None:
    losses = []
    for coefficient in (0.0, 1.0):
        config = NATIVE_MOES["mixtral"](router_aux_loss_coef=coefficient, num_labels=3)
        torch.manual_seed(0)
        model = MixtralForSequenceClassification(config).train()
        terms, given = LossTerms(model), {"input_ids": batch, "labels": torch.arange(8) % 3}
        with terms.watching(given, True):
            outputs = model(**given)
        loss, measured = terms.added(outputs.loss, outputs, given, torch.tensor(8), processes=1)
        losses.append(loss.item())
    assert losses[1] - losses[0] == pytest.approx(2 * measured["aux_loss"].item(), rel=1e-4)


class TestTrainer:
    """transformers' own classes in `MoETrainer`."""

    @pytest.mark.parametrize("steps", [1, 4])
    def test_the_logged_loss_has_one_balance_loss_whatever_the_accumulation(self, tmp_path, steps: int) -> None:
        model = native_moe("mixtral", router_aux_loss_coef=COEFFICIENT, output_router_logits=True)
        options = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps, "max_steps": 1}
        make_trainer(tmp_path, model, rows(8), **options).train()
        line = read_metrics(str(tmp_path))[0]
        assert line["loss"] == pytest.approx(line["cross_entropy"] + COEFFICIENT * 2 * line["aux_loss"], rel=1e-4)

    @pytest.mark.parametrize("kind", list(NATIVE_MOES))
    def test_every_class_trains_and_tells_of_its_routing(self, tmp_path, kind: str) -> None:
        model = native_moe(kind)
        make_trainer(tmp_path, model, rows(4), learning_rate=0.02, per_device_train_batch_size=4).train()
        lines = [line for line in read_metrics(str(tmp_path)) if "loss" in line]
        assert lines[-1]["cross_entropy"] < lines[0]["cross_entropy"]
        sparse = 1 if kind in ("deepseek_v3", "jamba") else 2
        assert len(lines[0]["layers"]["load"]) == sparse
        assert all(sum(load) == pytest.approx(1) for load in lines[0]["layers"]["load"])
        assert {"aux_loss", "load_max", "router_entropy", "dead_experts", "tokens_per_second"} <= lines[0].keys()

    @pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "granitemoe", "deepseek_v3"])
    def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(self, tmp_path, kind: str) -> None:
        options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "gradient_accumulation_steps": 2}
        options["lr_scheduler_type"] = "constant"
        whole = native_moe(kind)
        make_trainer(tmp_path / "whole", whole, rows(32), **options).train()
        part = make_trainer(tmp_path / "part", native_moe(kind), rows(32), **options)
        part.args.max_steps = 2
        part.train()
        again = native_moe(kind)
        make_trainer(tmp_path / "part", again, rows(32), **options).train(resume_from_checkpoint=True)
        state = again.state_dict()
        assert all(state[name].equal(value) for name, value in whole.state_dict().items())

    def test_evaluation_is_cross_entropy_and_predictions_are_logits(self, tmp_path) -> None:
        model = native_moe("mixtral", router_aux_loss_coef=9.0, output_router_logits=True)
        seen = []

        def metrics(predicted):
            seen.append(predicted.predictions.shape)
            return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}

        trainer = make_trainer(tmp_path, model, eval_data=rows(8))
        trainer.compute_metrics = metrics
        batch = torch.stack([row["input_ids"] for row in rows(8)])
        expected = model.eval()(batch, labels=batch, output_router_logits=False).loss
        result = trainer.evaluate()
        assert result["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert "eval_accuracy" in result
        predicted = trainer.predict(rows(8))
        assert predicted.predictions.shape == seen[0] == (8, LENGTH, 61)

    def test_a_loss_of_the_user_s_keeps_the_balance_loss(self, tmp_path) -> None:
        model = native_moe("mixtral", router_aux_loss_coef=COEFFICIENT)
        trainer = make_trainer(tmp_path, model, rows(8), max_steps=1, per_device_train_batch_size=8)
        trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: 0.0 * outputs["logits"].sum()
        trainer.train()
        line = read_metrics(str(tmp_path))[0]
        assert line["loss"] == pytest.approx(COEFFICIENT * 2 * line["aux_loss"], rel=1e-4)

    @pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
    def test_every_experts_backend_gives_the_same_losses(self, tmp_path, kind: str) -> None:
        losses = {}
        for backend in ("eager", "auto", "sorted"):
            model = native_moe(kind)
            model.set_experts_implementation(backend)
            make_trainer(tmp_path / backend, model, rows(16), max_steps=3).train()
            losses[backend] = [line["loss"] for line in read_metrics(str(tmp_path / backend)) if "loss" in line]
        assert losses["auto"] == pytest.approx(losses["eager"], rel=1e-4)
        assert losses["sorted"] == pytest.approx(losses["eager"], rel=1e-4)

    def test_muon_takes_the_stacks_of_experts(self, tmp_path) -> None:
        model = native_moe("mixtral")
        trainer = make_trainer(tmp_path, model, rows(16), max_steps=2, optim="moe_muon")
        trainer.train()
        groups = trainer.optimizer.optimizer.param_groups
        muon = {id(x) for group in groups if group["kind"] == "muon" for x in group["params"]}
        stacks = [x for name, x in model.named_parameters() if ".experts." in name]
        assert len(stacks) == 4
        assert all(id(x) in muon for x in stacks)
