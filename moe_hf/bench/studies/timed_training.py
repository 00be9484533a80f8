"""Trains a model, timed in CPU seconds, with the held-out loss in between.

Shapes: N blocks, B blocks of one step, S positions of one block.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from moe_hf.bench.harness.training import cpu_seconds, train_step
from moe_hf.bench.studies.language_data import IGNORED, HeldOut
from moe_hf.models.router_states import RouterStates


class Point(NamedTuple):
    """One measurement: what the steps so far cost, and the mean nats per counted token of each held-out set."""

    step: int
    cpu_seconds: float
    losses: dict[str, float]


class Recipe(NamedTuple):
    """How a model is trained: a linear warm-up, then a linear decay to zero."""

    learning_rate: float
    batch_size: int
    warmup_steps: int
    eval_every: int


def adamw(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), fused=True)


def train(
    model: PreTrainedModel,
    blocks_NS: torch.Tensor,
    recipe: Recipe,
    heldout: Mapping[str, HeldOut],
    optimizer_of: Callable[[PreTrainedModel, float], torch.optim.Optimizer] = adamw,
) -> Iterator[Point]:
    """Train on the blocks in their order, each once; yields before the first step, every `eval_every` and at the end.

    The CPU seconds are those of forward, backward, clipping and update, over all threads; scoring is not counted.
    Routers' states move as in the Trainer.
    """
    num_steps = len(blocks_NS) // recipe.batch_size
    optimizer, states = optimizer_of(model, recipe.learning_rate), RouterStates(model)
    if not states.needed:
        states.close()
    spent = 0.0
    yield Point(0, spent, heldout_losses(model, heldout))
    for step in range(num_steps):
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, num_steps, recipe.warmup_steps)
        train_step(model, optimizer, blocks_NS[step * recipe.batch_size : (step + 1) * recipe.batch_size])
        if states.needed:
            states.step()
        spent += time.process_time() - begun
        if (step + 1) % recipe.eval_every == 0 or step + 1 == num_steps:
            yield Point(step + 1, spent, heldout_losses(model, heldout))


@torch.no_grad()
def heldout_losses(model: PreTrainedModel, heldout: Mapping[str, HeldOut], batch_size: int = 32) -> dict[str, float]:
    """Mean cross-entropy per counted token, in nats, of each set; no router loss is in it."""
    model.eval()
    losses = {}
    for name, (input_ids, labels) in heldout.items():
        total, count = 0.0, 0
        for ids_BS, labels_BS in zip(input_ids.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(input_ids=ids_BS, use_cache=False).logits[:, :-1].flatten(0, 1)
            targets = labels_BS[:, 1:].flatten()
            total += torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
            count += int((targets != IGNORED).sum())
        losses[name] = total / count
    return losses


def side_by_side(runs: Mapping[str, Iterator[Point]]) -> dict[str, list[Point]]:
    """Every run's points, the runs advanced in turns, so that other load on the machine slows all of them alike."""
    points: dict[str, list[Point]] = {name: [] for name in runs}
    waiting = dict(runs)
    while waiting:
        for name in list(waiting):
            point = next(waiting[name], None)
            if point is None:
                del waiting[name]
            else:
                points[name].append(point)
    return points


def seconds_per_step(models: Mapping[str, PreTrainedModel], batch_BS: torch.Tensor, turns: int) -> dict[str, float]:
    """Median CPU seconds of one training step of each model, measured in turns; the models are changed by it."""
    steps = {}
    for name, model in models.items():
        # So small that the routes hardly move while they are timed.
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        steps[name] = partial(train_step, model, optimizer, batch_BS)
    return cpu_seconds(steps, turns)


def _schedule(step: int, num_steps: int, warmup_steps: int) -> float:
    return min((step + 1) / max(warmup_steps, 1), (num_steps - step) / max(num_steps - warmup_steps, 1), 1.0)
