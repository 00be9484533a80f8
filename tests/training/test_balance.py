"""The callback in real Trainers: states move once per optimizer step, whatever the accumulation, and are resumed."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from moe_hf.base.optional import is_available
from moe_hf.models.found_routers import find_routers
from moe_hf.models.router_states import routers_of
from moe_hf.training.balance import RouterStateCallback
from moe_hf.training.metrics import read_metrics
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments
from tests.models.native_moes import native_moe


@pytest.fixture(scope="module")
def rows() -> Dataset:
    ids = torch.randint(3, 61, (12, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def arguments(kind, folder, **overrides):
    given = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        # The weights stay, so that the states see the same tokens whatever the micro-batches are.
        "learning_rate": 0.0,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
    }
    return kind(**{**given, **overrides})


def states(model) -> torch.Tensor:
    return torch.stack([router.state_E for router in routers_of(model)])


@pytest.mark.parametrize("kind", ["sigmoid_bias", "expert_threshold"])
def test_works_in_transformers_own_trainer(tiny_model, rows, tmp_path, kind) -> None:
    model = tiny_model(router_type=kind).train()
    before = states(model).clone()
    args = arguments(TrainingArguments, tmp_path)
    Trainer(model=model, args=args, train_dataset=rows, callbacks=[RouterStateCallback()]).train()
    assert not states(model).isclose(before).any()


def test_without_the_callback_a_plain_trainer_leaves_the_bias(tiny_model, rows, tmp_path) -> None:
    model = tiny_model(router_type="sigmoid_bias").train()
    Trainer(model=model, args=arguments(TrainingArguments, tmp_path), train_dataset=rows).train()
    assert states(model).abs().sum() == 0


def test_the_bias_moves_once_per_optimizer_step_whatever_the_accumulation(tiny_model, rows, tmp_path) -> None:
    moved = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        model = tiny_model(router_type="sigmoid_bias", router_bias_update_speed=0.01).train()
        args = arguments(
            MoETrainingArguments,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        MoETrainer(model=model, args=args, train_dataset=rows).train()
        moved.append(states(model))
    assert moved[0].equal(moved[1])
    assert moved[0].equal(moved[2])
    # Two steps of 0.01 each, give or take the mean.
    assert 0.01 < moved[0].abs().max() < 0.03


def test_a_global_batch_is_counted_over_accumulation_steps(tiny_model, rows, tmp_path) -> None:
    window = {}

    class Look(RouterStateCallback):
        def on_pre_optimizer_step(self, *args, **kwargs) -> None:
            counts = model.balance_window._counts
            window["tokens"] = sum(counts[0]).item() / 2
            super().on_pre_optimizer_step(*args, **kwargs)
            window["after"] = dict(model.balance_window._counts)

    model = tiny_model(router_balance_loss="global_batch").train()
    args = arguments(MoETrainingArguments, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    MoETrainer(model=model, args=args, train_dataset=rows, callbacks=[Look()]).train()
    assert window == {"tokens": 6 * 9, "after": {}}
    assert model.balance_window is None


def test_a_resumed_run_has_the_states_of_the_uninterrupted_one(tiny_model, rows, tmp_path) -> None:
    ends = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            model = tiny_model(router_type="sigmoid_bias").train()
            args = arguments(
                MoETrainingArguments,
                tmp_path / name,
                max_steps=stop,
                save_strategy="steps",
                save_steps=2,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
            )
            MoETrainer(model=model, args=args, train_dataset=rows).train(
                resume_from_checkpoint=stop == 4 and len(stops) > 1
            )
        ends.append(states(model))
    assert ends[0].equal(ends[1])
    assert ends[0].abs().max() > 0


def test_what_was_dropped_is_logged(tiny_model, rows, tmp_path) -> None:
    model = tiny_model(router_capacity_factor=0.5).train()
    MoETrainer(model=model, args=arguments(MoETrainingArguments, tmp_path), train_dataset=rows).train()
    record = read_metrics(str(tmp_path))[0]
    assert 0.2 < record["dropped"] < 0.8
    assert record["dropped"] == pytest.approx(sum(record["layers"]["dropped"]) / 2)


def test_the_logged_loss_is_the_one_that_is_trained_with(tiny_model, rows, tmp_path) -> None:
    model = tiny_model(router_balance_loss="cv_squared").train()
    seen = []
    model.register_forward_hook(lambda module, args, out: seen.append(out.aux_loss.item()))
    MoETrainer(model=model, args=arguments(MoETrainingArguments, tmp_path), train_dataset=rows).train()
    records = read_metrics(str(tmp_path))
    assert [record["aux_loss"] for record in records[:2]] == pytest.approx(seen)
    assert 0 < seen[0] < 0.9
    # Per layer the usual one is logged beside it.
    assert all(value >= 0.9 for value in records[0]["layers"]["aux_loss"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.skipif(not is_available("peft"), reason="peft is not installed")
def test_an_adapted_router_trains_in_our_trainer_and_resumes_to_the_bit(tiny_model, rows, tmp_path) -> None:
    import peft

    def trainer(folder, **overrides):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.gate.weight"])
        model = peft.get_peft_model(tiny_model(router_type="sigmoid_bias"), config)
        given = {"max_steps": 4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2, **overrides}
        return MoETrainer(model=model, args=arguments(MoETrainingArguments, folder, **given), train_dataset=rows)

    whole = trainer(tmp_path)
    whole.train()
    gate = {name: p for name, p in whole.model.named_parameters() if "gate.lora_B" in name}
    assert gate
    assert all(p.abs().sum() > 0 for p in gate.values())
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert states(resumed.model).equal(states(whole.model))
    assert states(whole.model).abs().sum() > 0
    others = dict(resumed.model.named_parameters())
    assert all(p.equal(others[name]) for name, p in whole.model.named_parameters())


class TestTransformersOwnBiases:
    """Nothing in transformers moves the biases of its DeepSeek-V3."""

    @pytest.fixture
    def model(self):
        return native_moe("deepseek_v3").train()

    @staticmethod
    def biases(model) -> torch.Tensor:
        return torch.stack([router.e_score_correction_bias.clone() for router in find_routers(model).values()])

    @pytest.mark.parametrize("kind", [Trainer, MoETrainer])
    def test_move_in_any_trainer_and_are_saved(self, model, rows, tmp_path, kind) -> None:
        args = arguments(MoETrainingArguments if kind is MoETrainer else TrainingArguments, tmp_path)
        callback = RouterStateCallback(bias_update_speed=0.5)
        kind(model=model, args=args, train_dataset=rows, callbacks=[callback]).train()
        moved = self.biases(model)
        assert moved.abs().max() > 0.1
        model.save_pretrained(tmp_path / "model")
        assert self.biases(AutoModelForCausalLM.from_pretrained(tmp_path / "model")).equal(moved)
        # The hooks are gone.
        assert not model.base_model._forward_hooks

    def test_move_once_per_step_whatever_the_accumulation(self, rows, tmp_path) -> None:
        moved = []
        for size, steps in ((8, 1), (2, 4)):
            model = native_moe("deepseek_v3").train()
            options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
            args = arguments(MoETrainingArguments, tmp_path / str(steps), **options)
            MoETrainer(model=model, args=args, train_dataset=rows).train()
            moved.append(self.biases(model))
        assert moved[0].abs().sum() > 0
        assert moved[0].equal(moved[1])
