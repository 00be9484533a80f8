"""The bare training step that measurements share, its CPU seconds, and the dense GPT-2 that they hold against ours."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel


def dense_gpt2(**fields: Any) -> GPT2LMHeadModel:
    """transformers' own GPT-2 without dropout, which would only blur what is compared; `fields` are the config's."""
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **fields)
    return with_loss(GPT2LMHeadModel(config))


def with_loss(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The model itself, its loss named: transformers finds none in this class's name and would warn."""
    model.loss_type = "ForCausalLM"
    return model


def train_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch_BS: torch.Tensor) -> None:
    """One update on the model's own training loss, which for a mixture of experts holds the router losses too."""
    model.train()
    model(input_ids=batch_BS, labels=batch_BS, use_cache=False).loss.backward()
    update(model, optimizer)


def update(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradients to a norm of 1, step, and leave none behind."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    # Every step begins without gradients, so that it is the same work each time.
    optimizer.zero_grad()


def cpu_seconds(calls: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median CPU seconds of each call over all threads, measured in turns; the first turn allocates and counts not."""
    return {name: median(seconds) for name, seconds in cpu_seconds_by_turn(calls, turns).items()}


def cpu_seconds_by_turn(calls: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """The CPU seconds of each call in every turn, of which `cpu_seconds` takes the median."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if turn > 0:
                spent[name].append(time.process_time() - begun)
    return spent
