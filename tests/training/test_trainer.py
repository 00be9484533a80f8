import copy
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    OlmoeConfig,
    OlmoeForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.models.gpt2_moe import GPT2WithMoE
from moe_hf.training.checkpoint import newest_valid_checkpoint
from moe_hf.training.metrics import read_metrics
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments
from tests.models.families import tiny_family

VOCABULARY, LENGTH = 40, 8
TIMES = ("runtime", "samples_per_second", "steps_per_second")
SPEED = ("tokens_per_second", "mfu", *(f"{part}_{what}" for part in ("train", "eval") for what in TIMES))


def tiny_moe(**overrides):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"max_position_embeddings": LENGTH, "num_experts": 4, "num_experts_per_tok": 2}
    other = {"mlp_layer_types": ["sparse", "sparse"], "bos_token_id": 0, "eos_token_id": 0}
    return GPT2WithMoE(GPT2WithMoEConfig(**(shape | sizes | other | overrides)))


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=LENGTH, bos_token_id=0, eos_token_id=0
        )
    )


def tiny_olmoe():
    torch.manual_seed(0)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0, eos_token_id=0,
            output_router_logits=True,
        )
    )  # fmt: skip


def rows(count, seed=1):
    tokens = torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row.clone()} for row in tokens]


class EndlessStream(torch.utils.data.IterableDataset):
    """Rows drawn one after the other from a counter; remembers how many were read."""

    def __init__(self, end=None):
        self.position, self.reads, self.end = 0, 0, end

    def __iter__(self):
        while self.end is None or self.position < self.end:
            self.position += 1
            self.reads += 1
            yield rows(1, seed=self.position)[0]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state_dict):
        self.position = state_dict["position"]


class StopAfter(TrainerCallback):
    """Lets a run end as if the process had been asked to at that step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class InterruptAt(TrainerCallback):
    """Sends this process a SIGINT, as Ctrl-C does, in the middle of a step."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def make_trainer(output_dir, model=None, data=None, callbacks=(), trainer_class=MoETrainer, eval_data=None, **options):
    arguments = {
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    } | options
    return trainer_class(
        model=tiny_moe() if model is None else model,
        args=MoETrainingArguments(output_dir=str(output_dir), **arguments),
        train_dataset=rows(12) if data is None else data,
        eval_dataset=eval_data,
        callbacks=list(callbacks),
    )


def without_speed(records):
    return [
        {name: value for name, value in record.items() if name not in SPEED}
        for record in records
        if "train_runtime" not in record
    ]


def assert_same_run(one, other):
    """Weights, optimizer state, log lines and metrics of two finished runs, to the bit."""
    for (name, tensor), twin in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, twin), name
    states = zip(
        one.optimizer.state_dict()["state"].values(), other.optimizer.state_dict()["state"].values(), strict=True
    )
    for state, twin in states:
        assert all(torch.equal(state[name], twin[name]) for name in state)
    assert without_speed(one.state.log_history) == without_speed(other.state.log_history)
    metrics = without_speed(read_metrics(one.args.output_dir))
    assert metrics == without_speed(read_metrics(other.args.output_dir))
    assert len(metrics) >= one.state.max_steps // one.args.logging_steps


# Resuming

DROPOUT = {"attention_dropout": 0.1, "resid_dropout": 0.1, "embd_dropout": 0.1}
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


@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_shuffled_stream_of_datasets_resumes_exactly_also_in_a_later_pass(tmp_path, stop):
    table = datasets.Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in rows(10)])

    def build(folder, *callbacks):
        stream = table.to_iterable_dataset(num_shards=5).shuffle(seed=3, buffer_size=1)
        return make_trainer(tmp_path / folder, data=stream, callbacks=callbacks, save_strategy="steps", save_steps=stop)

    whole = build("whole")
    whole.train()
    build("parts", StopAfter(stop)).train()
    resumed = build("parts")
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_stream_is_not_replayed(tmp_path):
    make_trainer(tmp_path, data=EndlessStream(), save_strategy="steps", save_steps=6, max_steps=6).train()
    stream = EndlessStream()
    make_trainer(tmp_path, data=stream, max_steps=8).train(resume_from_checkpoint=True)
    assert stream.reads == 2 * 2


def test_a_stream_without_saved_place_is_replayed(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(tmp_path / "whole", data=EndlessStream(), **options)
    whole.train()
    make_trainer(tmp_path / "parts", data=EndlessStream(), callbacks=[StopAfter(5)], **options).train()
    checkpoint = tmp_path / "parts" / "checkpoint-5"
    (checkpoint / "run_state.pt").unlink()
    (checkpoint / "manifest.json").unlink()
    resumed = make_trainer(tmp_path / "parts", data=EndlessStream(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_stream_with_workers_is_left_to_transformers(tmp_path):
    trainer = make_trainer(tmp_path, data=EndlessStream(), dataloader_num_workers=1)
    assert isinstance(trainer.get_train_dataloader(), torch.utils.data.DataLoader)


def test_a_stream_without_examples_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no example"):
        make_trainer(tmp_path, data=EndlessStream(end=0)).train()


def test_a_place_that_cannot_be_loaded_safely_is_refused_when_saved(tmp_path):
    class Careless(EndlessStream):
        def state_dict(self):
            return {"position": Path("x")}

    with pytest.raises(CheckpointError, match="plain Python values"):
        make_trainer(tmp_path, data=Careless(), save_strategy="steps", save_steps=1).train()
    assert newest_valid_checkpoint(str(tmp_path)) is None


@pytest.mark.parametrize("build_model", [tiny_gpt2, tiny_olmoe])
def test_models_of_transformers_train_and_resume_exactly(tmp_path, build_model):
    # OLMoE's experts are fused in memory and apart on disk: Trainer alone goes on with fresh ones.
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    whole = make_trainer(tmp_path / "whole", build_model(), **options)
    whole.train()
    make_trainer(tmp_path / "parts", build_model(), callbacks=[StopAfter(3)], **options).train()
    resumed = make_trainer(tmp_path / "parts", build_model(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    assert ("layers" in read_metrics(str(tmp_path / "whole"))[0]) == (build_model is tiny_olmoe)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    other = tiny_moe(mixer_short_conv=3)
    with pytest.raises(CheckpointError, match=r"short_conv"):
        make_trainer(tmp_path, other).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("build_model", [tiny_moe, tiny_gpt2, tiny_olmoe])
def test_a_checkpoint_of_other_sizes_is_refused_and_both_are_named(tmp_path, build_model):
    make_trainer(tmp_path, build_model(), save_strategy="steps", save_steps=2, max_steps=2).train()
    other = copy.deepcopy(build_model().config)
    setattr(other, "hidden_size" if build_model is tiny_moe else "vocab_size", 48)
    with pytest.raises(CheckpointError, match=r"other sizes .*(40|16).* from checkpoint, .*48") as error:
        make_trainer(tmp_path, type(build_model())(other)).train(resume_from_checkpoint=True)
    assert "\n" not in str(error.value)


def test_experts_of_other_sizes_under_other_names_are_refused(tmp_path):
    make_trainer(tmp_path, tiny_olmoe(), save_strategy="steps", save_steps=2, max_steps=2).train()
    other = copy.deepcopy(tiny_olmoe().config)
    other.intermediate_size = 12
    with pytest.raises(CheckpointError, match=r"does not fit the model.*experts.*8.*12"):
        make_trainer(tmp_path, OlmoeForCausalLM(other)).train(resume_from_checkpoint=True)


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


# Interrupts


def test_ctrl_c_saves_after_the_step_and_the_run_can_go_on_exactly(tmp_path):
    whole = make_trainer(tmp_path / "whole", tiny_moe(**DROPOUT))
    whole.train()
    before = signal.getsignal(signal.SIGINT)
    stopped = make_trainer(tmp_path / "parts", tiny_moe(**DROPOUT), callbacks=[InterruptAt(3)])
    stopped.train()
    assert stopped.interrupted
    assert stopped.state.global_step == 3
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint = newest_valid_checkpoint(str(tmp_path / "parts"))
    assert checkpoint == str(tmp_path / "parts" / "checkpoint-3")
    resumed = make_trainer(tmp_path / "parts", tiny_moe(**DROPOUT))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert not resumed.interrupted
    assert_same_run(whole, resumed)


def test_ctrl_c_does_not_start_the_evaluation_due_at_the_end_of_the_epoch(tmp_path):
    trainer = make_trainer(
        tmp_path, callbacks=[InterruptAt(2)], eval_data=rows(2), eval_strategy="epoch", save_strategy="epoch"
    )
    trainer.train()
    assert not any("eval_loss" in record for record in trainer.state.log_history)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_ctrl_c_saves_even_when_only_the_best_is_saved(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "metric_for_best_model": "loss"}
    # Learning backwards: every evaluation after the first is worse.
    trainer = make_trainer(
        tmp_path, callbacks=[InterruptAt(3)], eval_data=rows(2, seed=9), learning_rate=1.0, optim="sgd", **options
    )
    trainer.train()
    assert newest_valid_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-3")


def test_the_second_ctrl_c_aborts_at_once(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[InterruptAt(3, times=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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


# Metrics


def test_metrics_of_a_window_cover_all_its_steps_and_parts(tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 4}
    make_trainer(tmp_path / "each", **options).train()
    make_trainer(tmp_path / "window", logging_steps=4, **options).train()
    each = [record for record in read_metrics(str(tmp_path / "each")) if "loss" in record]
    window = read_metrics(str(tmp_path / "window"))[0]
    for name in ("aux_loss", "z_loss", "router_entropy", "loss"):
        assert window[name] == pytest.approx(sum(record[name] for record in each) / 4, rel=1e-5), name
    loads = torch.tensor([record["layers"]["load"] for record in each]).mean(dim=0)
    torch.testing.assert_close(torch.tensor(window["layers"]["load"]), loads)


def test_reported_values_are_scalars_of_the_same_logs(tmp_path):
    seen = []

    class Sink(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    make_trainer(tmp_path, callbacks=[Sink()], max_steps=1, peak_flops=1e12).train()
    names = {"aux_loss", "z_loss", "router_entropy", "load_max", "dead_experts", "tokens_per_second", "mfu"}
    assert names <= set(seen[0])
    assert all(isinstance(value, int | float) for value in seen[0].values())
    assert "layers" in read_metrics(str(tmp_path))[0]


def test_a_dense_model_logs_no_routing(tmp_path):
    make_trainer(tmp_path, tiny_moe(mlp_layer_types=["dense", "dense"]), max_steps=1).train()
    record = read_metrics(str(tmp_path))[0]
    assert record["tokens_per_second"] > 0
    assert not {"layers", "aux_loss", "dead_experts", "mfu"} & set(record)


def test_a_fresh_run_begins_a_fresh_metrics_file(tmp_path):
    make_trainer(tmp_path, max_steps=3).train()
    make_trainer(tmp_path, max_steps=2).train()
    assert [record["step"] for record in read_metrics(str(tmp_path))] == [1, 2, 2]


def test_total_flos_count_active_parameters(tmp_path):
    few, many = (make_trainer(tmp_path / str(e), tiny_moe(num_experts=e), max_steps=1) for e in (4, 8))
    for trainer in (few, many):
        trainer.train()
    # Twice the experts, k the same: only the routers grow.
    tokens, layers, width = 2 * LENGTH, 2, 16
    assert many.state.total_flos - few.state.total_flos == tokens * 6 * layers * 4 * width


# Arguments


def test_every_flag_parses_beside_our_own():
    parser = HfArgumentParser(MoETrainingArguments)
    words = "--output_dir x --optim moe_muon --muon_learning_rate 0.05 --weight_decay 0.1 --peak_flops 1e12 --use_cpu"
    (args,) = parser.parse_args_into_dataclasses(words.split())
    assert (args.optim, args.muon_learning_rate, args.weight_decay, args.peak_flops) == ("moe_muon", 0.05, 0.1, 1e12)
    assert json.loads(args.to_json_string())["optim"] == "moe_muon"
    assert copy.deepcopy(args).optim == "moe_muon"


def test_defaults_of_the_project(tmp_path):
    args = MoETrainingArguments(output_dir=str(tmp_path), seed=7, use_cpu=True)
    assert args.optim == "adamw_torch_fused"
    assert (args.logging_steps, args.save_total_limit, args.report_to, args.data_seed) == (25, 2, [], 7)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"optim": "moe_moun"}, "optim 'moe_moun' is unknown; did you mean 'moe_muon'"),
        ({"muon_learning_rate": 0.0}, "muon_learning_rate must be > 0"),
        ({"peak_flops": -1.0}, "peak_flops must be > 0"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
    ],
)
def test_wrong_values_are_config_errors(tmp_path, wrong, text):
    with pytest.raises(ConfigError, match=text):
        MoETrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


# Several processes

WORLD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_trainer import world_run
world_run(sys.argv[2])
"""


def world_run(folder):
    """Two runs of the same 4 rows per step, map-style and streamed; the second one is stopped and resumed."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    options = {"per_device_train_batch_size": 4 // world, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    coefficients = {"router_aux_loss_coef": 5.0, "router_z_loss_coef": 5.0}
    same = {"data": rows(2) * 8, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.1}
    trainer = make_trainer(f"{folder}/map", tiny_moe(**coefficients), **(same | options))
    trainer.train()
    torch.save(trainer.model.state_dict(), f"{folder}/map-{trainer.args.process_index}.pt")
    # Only the last process is interrupted: all have to agree.
    alone = [InterruptAt(2)] if trainer.args.process_index == world - 1 else []
    # Balance is each process's own affair, so it stays out where their rows differ.
    model, resumed = (tiny_moe(router_aux_loss_coef=0.0, router_z_loss_coef=5.0) for _ in range(2))
    stopped = make_trainer(f"{folder}/stream", model, EndlessStream(), alone, **options)
    stopped.train()
    assert stopped.state.global_step == 2
    make_trainer(f"{folder}/stream", resumed, EndlessStream(), **options).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tail = ["-c", WORLD, str(Path(__file__).parent)]
    script = tmp_path / "world.py"
    script.write_text(WORLD)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run([sys.executable, *tail, str(tmp_path / "one")], check=True, env=environment, timeout=200)
    subprocess.run([*torchrun, *tail[2:], str(tmp_path / "two")], check=True, env=environment, timeout=200)
    names = {
        "map": ("loss", "aux_loss", "z_loss", "grad_norm", "epoch"),
        "stream": ("loss", "z_loss", "grad_norm", "epoch"),
    }
    for kind in names:
        one, two = (without_speed(read_metrics(str(tmp_path / world / kind))) for world in ("one", "two"))
        assert [record["step"] for record in two] == [1, 2, 3, 4]
        for record, twin in zip(one, two, strict=True):
            for name in names[kind]:
                assert twin[name] == pytest.approx(record[name], rel=1e-3), (kind, name)
    states = [torch.load(tmp_path / name) for name in ("one/map-0.pt", "two/map-0.pt", "two/map-1.pt")]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], states[2][name])
        torch.testing.assert_close(states[1][name], tensor, atol=1e-5, rtol=1e-4)
