"""A small run, who listens to it, and when two of them are the same."""

import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from moe_hf.training.metrics import read_metrics
from moe_hf.training.runs.listeners import RunListener

SMALL = (
    "--model_overrides hidden_size=16 num_attention_heads=2 num_hidden_layers=2 --num_conversations 150 "
    "--per_device_train_batch_size 2 --max_steps 6 --logging_steps 2 --save_steps 2 --context_length 64 "
    "--tokenizer byte --questions_per_skill 0 --eval_data {eval_data}"
)


class Recorder(RunListener):
    """Keeps what it hears, and presses Ctrl-C after a step if asked to."""

    def __init__(self, interrupt_at=None):
        self.events, self.plan, self.notices, self.steps = [], None, [], []
        self.interrupt_at = interrupt_at

    def noticed(self, text):
        self.notices.append(text)

    def working(self, what):
        self.events.append(what)

    def planned(self, plan):
        self.plan = plan

    def progressed(self, progress):
        self.steps.append(progress)
        if progress.step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def ended(self, report):
        self.events.append(report)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same_weights(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def log_lines(folder):
    speed = ("tokens_per_second", "_runtime", "_per_second")
    lines = [
        {name: value for name, value in event.items() if not name.endswith(speed)}
        for event in read_metrics(str(folder))
    ]
    # A sum of float32 numbers in another order.
    return [line | {name: round(line[name], 5) for name in ("train_loss",) if name in line} for line in lines]
