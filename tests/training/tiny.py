"""Tiny models, data and trainers for the tests of this folder, and when two runs are the same."""

import os
import signal

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OlmoeConfig,
    OlmoeForCausalLM,
    TrainerCallback,
)

from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.models.gpt2_moe import GPT2WithMoE
from moe_hf.training.metrics import read_metrics
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments

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


DROPOUT = {"attention_dropout": 0.1, "resid_dropout": 0.1, "embd_dropout": 0.1}
