import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from transformers import (
    TrainerCallback,
    TrainingArguments,
)

from moe_hf.training.checkpoint import newest_valid_checkpoint
from moe_hf.training.metrics import read_metrics
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments
from tests.models.families import tiny_family
from tests.training.tiny import (
    DROPOUT,
    VOCABULARY,
    EndlessStream,
    StopAfter,
    assert_same_run,
    make_trainer,
    rows,
    tiny_gpt2,
    tiny_moe,
    tiny_olmoe,
    without_speed,
)

# Resuming

RESUME_CASES = {
    # 12 rows, 2 per batch: an epoch is 6 batches.
    "mid-epoch": ({"gradient_accumulation_steps": 2}, None, 4),
    "epoch-end": ({}, None, 6),
    "second-epoch": ({}, None, 7),
    "uneven-accumulation": ({"gradient_accumulation_steps": 4}, None, 3),
    "open-log-window": ({"logging_steps": 3}, None, 5),
    "muon": ({"optim": "moe_muon", "weight_decay": 0.1, "lr_scheduler_type": "cosine"}, None, 3),
    "jitter-and-checkpointing": ({"gradient_checkpointing": True}, None, 5),
    "stream": ({"gradient_accumulation_steps": 2}, EndlessStream, 5),
    "stream-that-ends": ({"gradient_accumulation_steps": 2}, lambda: EndlessStream(end=7), 5),
    "stream-open-log-window": ({"logging_steps": 4}, EndlessStream, 3),
}


@pytest.mark.parametrize("kind", ["gpt2-rotary-conv", "mamba-attention", "mamba-interleaved", "rwkv7", "hyena"])
def test_a_run_of_any_mixer_resumes_to_the_bit(tmp_path, kind):
    def build(folder, *callbacks):
        model = tiny_family(kind, resid_dropout=0.1).train()
        return make_trainer(tmp_path / folder, model, None, callbacks, max_steps=4, save_strategy="steps", save_steps=2)

    whole = build("whole")
    whole.train()
    build("parts", StopAfter(2)).train()
    resumed = build("parts")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for (name, tensor), twin in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, twin), name


@pytest.mark.parametrize("newest", [True, "auto"])
def test_the_newest_checkpoint_is_resumed_by_true_and_by_auto(tmp_path, newest):
    options = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, tiny_moe(), callbacks=[StopAfter(4)], **options).train()
    resumed = make_trainer(tmp_path, tiny_moe(), **options)
    resumed.train(resume_from_checkpoint=newest)
    assert (resumed._begun_step, resumed.state.global_step) == (4, 8)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", RESUME_CASES)
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, case):
    options, make_data, stop = RESUME_CASES[case]
    options = {"save_strategy": "steps", "save_steps": stop, **options}
    overrides = DROPOUT | ({"router_jitter_noise": 0.1} if "jitter" in case else {})

    def build(folder, *callbacks):
        data = make_data() if make_data else None
        return make_trainer(tmp_path / folder, tiny_moe(**overrides), data, callbacks, **options)

    whole = build("whole")
    whole.train()
    build("parts", StopAfter(stop)).train()
    torch.manual_seed(123)
    resumed = build("parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert resumed.state.global_step == 8
    assert_same_run(whole, resumed)


# The end of a run


END_CASES = {
    # 12 rows, 2 per batch: an epoch is 6 batches.
    "mid-epoch": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2},
    "epoch-end": {"max_steps": 6, "save_strategy": "steps", "save_steps": 3},
    "open-log-window": {"max_steps": 5, "save_strategy": "steps", "save_steps": 5, "logging_steps": 3},
    "epochs": {
        "num_train_epochs": 2, "max_steps": -1, "save_strategy": "epoch", "logging_strategy": "epoch",
        "logging_steps": 6,
    },
    "end-of-epoch-after-the-save": {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch",
        "logging_strategy": "epoch", "logging_steps": 6,
    },
    "stream": {"max_steps": 4, "save_strategy": "steps", "save_steps": 2},
    "best": {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": True,
    },
}  # fmt: skip


class KilledAtTheEnd(MoETrainer):
    """Dies when all steps are done and saved."""

    def _finalize_training(self, *args):
        raise KeyboardInterrupt


@pytest.mark.parametrize("case", END_CASES)
def test_a_run_killed_at_its_end_is_ended_and_not_trained_further(tmp_path, case):
    def build(folder, trainer_class=MoETrainer):
        data = EndlessStream() if case == "stream" else None
        model = tiny_moe(**DROPOUT)
        return make_trainer(
            tmp_path / folder,
            model,
            data,
            (),
            trainer_class,
            rows(4, seed=5),
            **({"learning_rate": 0.1} | END_CASES[case]),
        )

    whole = build("whole")
    whole_output = whole.train()
    killed = build("parts", KilledAtTheEnd)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = build("parts")
    output = resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    assert_same_run(whole, resumed)
    assert output.training_loss == pytest.approx(whole_output.training_loss, rel=1e-6)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_run_killed_after_a_save_at_the_end_of_an_epoch_misses_nothing(tmp_path, stop):
    options = {"save_strategy": "steps", "save_steps": stop, "eval_strategy": "epoch", "logging_strategy": "epoch"}
    options["logging_steps"] = 6

    def build(folder, *callbacks):
        return make_trainer(tmp_path / folder, tiny_moe(**DROPOUT), None, callbacks, eval_data=rows(4), **options)

    class KilledAfterSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    whole = build("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        build("parts", KilledAfterSave()).train()
    resumed = build("parts")
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_the_closing_line_of_a_resumed_run_sums_up_the_whole_run(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    whole = make_trainer(tmp_path / "whole", **options).train()
    make_trainer(tmp_path / "parts", callbacks=[StopAfter(3)], **options).train()
    checkpoint = tmp_path / "parts" / "checkpoint-3"
    state = torch.load(checkpoint / "run_state.pt")
    state["run"]["seconds"] += 1000.0
    torch.save(state, checkpoint / "run_state.pt")
    (checkpoint / "manifest.json").unlink()
    resumed = make_trainer(tmp_path / "parts", **options)
    parts = resumed.train(resume_from_checkpoint=True)
    assert parts.training_loss == pytest.approx(whole.training_loss, rel=1e-6)
    assert 1000 < parts.metrics["train_runtime"] < 1200
    assert parts.metrics["train_steps_per_second"] == pytest.approx(8 / parts.metrics["train_runtime"], abs=1e-3)
    assert resumed.timed_steps == 8
    assert read_metrics(str(tmp_path / "parts"))[-1]["train_loss"] == parts.training_loss


def test_a_checkpoint_that_does_not_tell_its_time_leaves_this_calls_part(tmp_path):
    make_trainer(tmp_path, callbacks=[StopAfter(3)], save_strategy="steps", save_steps=3).train()
    checkpoint = tmp_path / "checkpoint-3"
    state = torch.load(checkpoint / "run_state.pt")
    del state["run"]
    torch.save(state, checkpoint / "run_state.pt")
    (checkpoint / "manifest.json").unlink()
    resumed = make_trainer(tmp_path)
    assert resumed.train(resume_from_checkpoint=True).metrics["train_runtime"] < 100
    assert resumed.timed_steps == 5


# Losses


def accumulated(tmp_path, steps, model, **options):
    """One optimizer step over the same 8 rows in `steps` parts: the logged line and the router's gradient."""
    same = rows(2) * 4
    seen = {}

    class KeepGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen["gate"] = model.model.layers[0].mlp.gate.weight.grad.clone()

    make_trainer(
        tmp_path / str(steps),
        model,
        same,
        [KeepGradient()],
        max_steps=1,
        max_grad_norm=0.0,
        per_device_train_batch_size=8 // steps,
        gradient_accumulation_steps=steps,
        train_sampling_strategy="sequential",
        **options,
    ).train()
    return read_metrics(str(tmp_path / str(steps)))[0], seen["gate"]


@pytest.mark.parametrize("steps", [2, 4])
def test_router_losses_do_not_depend_on_gradient_accumulation(tmp_path, steps):
    # Only router losses reach the gate's gradient in force, and each part holds the same rows.
    options = {"router_aux_loss_coef": 5.0, "router_z_loss_coef": 5.0}
    line, gradient = accumulated(tmp_path, 1, tiny_moe(**options))
    parts_line, parts_gradient = accumulated(tmp_path, steps, tiny_moe(**options))
    torch.testing.assert_close(parts_gradient, gradient, atol=1e-6, rtol=1e-4)
    for name in ("loss", "aux_loss", "z_loss", "load_max", "router_entropy", "dead_experts"):
        assert parts_line[name] == pytest.approx(line[name], rel=1e-5), name
    assert parts_line["layers"]["load"] == [pytest.approx(load) for load in line["layers"]["load"]]


def test_the_logged_loss_counts_every_predicted_token_once(tmp_path):
    # With a class name that transformers does not know, Trainer would divide by all T labels instead of T - 1.
    model = tiny_moe(router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    batch = torch.stack([row["input_ids"] for row in rows(4)])
    with torch.no_grad():
        logits = model(batch).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
    make_trainer(tmp_path, model, rows(4), max_steps=1, per_device_train_batch_size=4).train()
    assert read_metrics(str(tmp_path))[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def untaught(count):
    return [{**row, "labels": torch.full_like(row["labels"], -100)} for row in rows(count)]


@pytest.mark.parametrize("build_model", [tiny_moe, tiny_gpt2, tiny_olmoe])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_without_targets_moves_nothing(tmp_path, build_model, smoothing):
    model = build_model(router_aux_loss_coef=1.0) if build_model is tiny_moe else build_model()
    if build_model is tiny_olmoe:
        model.config.output_router_logits = False
    before = copy.deepcopy(model.state_dict())
    options = {"max_steps": 2, "gradient_accumulation_steps": 2, "label_smoothing_factor": smoothing, "optim": "sgd"}
    trainer = make_trainer(tmp_path, model, untaught(8), **options)
    trainer.train()
    assert [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == [0.0, 0.0]
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())


def test_a_batch_without_targets_does_not_lower_the_evaluation_loss(tmp_path):
    taught = make_trainer(tmp_path, eval_data=rows(8)).evaluate()["eval_loss"]
    mixed = make_trainer(tmp_path, eval_data=[*rows(8), *untaught(8)]).evaluate()["eval_loss"]
    # Versions of transformers that keep NaN in the mean say NaN.
    assert math.isnan(mixed) or mixed == pytest.approx(taught)
    assert math.isnan(make_trainer(tmp_path, eval_data=untaught(8)).evaluate()["eval_loss"])


def test_eval_loss_is_cross_entropy_so_that_its_exponential_is_the_perplexity(tmp_path):
    model = tiny_moe(router_aux_loss_coef=1.0, router_z_loss_coef=1.0, output_router_logits=True)
    held_out = rows(4, seed=7)
    trainer = make_trainer(tmp_path, model, eval_data=held_out)
    loss = trainer.evaluate()["eval_loss"]
    batch = torch.stack([row["input_ids"] for row in held_out])
    log_prob = model.eval()(batch).logits[:, :-1].log_softmax(dim=-1)
    surprise = -log_prob.gather(-1, batch[:, 1:, None]).mean().item()
    assert math.exp(loss) == pytest.approx(math.exp(surprise), rel=1e-5)
    assert trainer._window.sums() == {}


# Flags


def test_bf16_trains_in_half_precision_and_keeps_router_logits_exact(tmp_path):
    dtypes = {}
    model = tiny_moe()
    model.lm_head.register_forward_hook(lambda module, args, out: dtypes.update(head=out.dtype))
    model.model.layers[0].mlp.gate.register_forward_hook(lambda module, args, out: dtypes.update(router=out[0].dtype))
    make_trainer(tmp_path, model, bf16=True, max_steps=6).train()
    losses = [record["loss"] for record in read_metrics(str(tmp_path)) if "loss" in record]
    assert dtypes == {"head": torch.bfloat16, "router": torch.float32}
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_number_and_counts_nothing_twice(tmp_path):
    plain = make_trainer(tmp_path / "plain", tiny_moe(**DROPOUT), max_steps=3)
    plain.train()
    again = []
    model = tiny_moe(**DROPOUT)
    model.model.layers[0].mlp.gate.register_forward_hook(lambda *_: again.append(1))
    checkpointed = make_trainer(tmp_path / "checkpointed", model, max_steps=3, gradient_checkpointing=True)
    checkpointed.train()
    assert len(again) == 2 * 3
    assert without_speed(read_metrics(str(tmp_path / "plain"))) == without_speed(
        read_metrics(str(tmp_path / "checkpointed"))
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_gives_the_same_losses(tmp_path):
    make_trainer(tmp_path / "plain", max_steps=3).train()
    make_trainer(tmp_path / "compiled", max_steps=3, torch_compile=True).train()
    plain, compiled = (read_metrics(str(tmp_path / name))[:3] for name in ("plain", "compiled"))
    for one, other in zip(plain, compiled, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["aux_loss"] == pytest.approx(one["aux_loss"], rel=1e-3)


def test_the_best_checkpoint_is_known_by_its_final_path_and_loaded_at_the_end(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_data=rows(12),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best)
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric


def test_only_the_newest_checkpoints_stay(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=8).train()
    assert {path.name for path in tmp_path.glob("*checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}


def test_plain_training_arguments_do(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, report_to="none")
    MoETrainer(model=tiny_moe(), args=args, train_dataset=rows(8)).train()
    assert newest_valid_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-1")


def test_the_token_of_the_hub_lies_in_no_saved_file(tmp_path):
    options = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    for kind in (TrainingArguments, MoETrainingArguments):
        args = kind(str(tmp_path / kind.__name__), hub_token="hf_secret", **options)
        trainer = MoETrainer(model=tiny_moe(), args=args, train_dataset=rows(8))
        trainer.train()
        trainer.save_model()
        files = [path for path in Path(args.output_dir).rglob("*") if path.is_file()]
        assert "training_args.bin" in {path.name for path in files}
        assert [path for path in files if b"hf_secret" in path.read_bytes()] == []
        assert args.hub_token == "hf_secret"
    assert b"hf_secret" not in pickle.dumps(args)


def test_a_fresh_run_begins_a_fresh_metrics_file(tmp_path):
    make_trainer(tmp_path, max_steps=3).train()
    make_trainer(tmp_path, max_steps=2).train()
    assert [record["step"] for record in read_metrics(str(tmp_path))] == [1, 2, 2]
