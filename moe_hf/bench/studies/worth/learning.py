"""What a candidate's training step costs, and what a candidate has learnt when a budget of CPU seconds is spent.

Shapes: N blocks, S positions of one block, L sparse layers, E experts, D domains.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from moe_hf.bench.harness.training import cpu_seconds_by_turn, train_step
from moe_hf.bench.studies.language_data import IGNORED, HeldOut
from moe_hf.bench.studies.timed_training import Recipe, train
from moe_hf.bench.studies.worth.candidates import TWIN, make_model
from moe_hf.bench.studies.worth.real_text import RealText, draw_blocks
from moe_hf.models.optim import moe_muon
from moe_hf.models.router_states import RouterStates

# At which the routes hardly move while a step is timed.
_SMALL_RATE = 1e-6


class Sizes(NamedTuple):
    """What all runs share. A step is `batch_size` blocks of `context_length` tokens."""

    vocab_size: int = 2048
    context_length: int = 256
    batch_size: int = 16
    learning_rate: float = 0.02
    warmup_share: float = 0.03
    points: int = 2


def muon(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    """Muon for matrices and experts, AdamW for the rest, both at one rate, as `train.py` sets them for `tiny`."""
    return moe_muon(model, learning_rate=learning_rate, muon_learning_rate=learning_rate, betas=(0.9, 0.95))


def measure_costs(names: Sequence[str], text: RealText, sizes: Sizes, turns: int) -> dict[str, dict[str, float]]:
    """CPU seconds of a training step of each candidate, and its ratio to the twin's, measured in turns.

    Args:
        names: candidates; the twin is measured with them in any case.
        text: whose first blocks are the batch.
        sizes: of a step.
        turns: samples of each.

    Returns:
        By name: `seconds`, the median; `ratio` to the twin, the median over the turns, and its quartiles `low` and
        `high`.
    """
    batch_BS = text.blocks_NS[: sizes.batch_size]
    calls = {}
    for name in dict.fromkeys([TWIN, *names]):
        model = make_model(name, len(text.tokenizer), sizes.context_length, seed=0)
        calls[name] = partial(_one_step, model, muon(model, _SMALL_RATE), _states_of(model), batch_BS)
    spent = cpu_seconds_by_turn(calls, turns)
    costs = {}
    for name, seconds in spent.items():
        ratios = [own / twin for own, twin in zip(seconds, spent[TWIN], strict=True)]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        costs[name] = {"seconds": median(seconds), "ratio": middle, "low": low, "high": high}
    return costs


def _states_of(model: PreTrainedModel) -> RouterStates | None:
    states = RouterStates(model)
    if states.needed:
        return states
    states.close()
    return None


def _one_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, states: RouterStates | None, batch_BS: torch.Tensor
) -> None:
    train_step(model, optimizer, batch_BS)
    if states is not None:
        states.step()


class Learnt(NamedTuple):
    """One finished run.

    Attributes:
        parameters: of the model.
        tokens: that it was trained on.
        cpu_seconds: that its steps really took, on a machine that may have been busy.
        nats: held-out cross-entropy per token, over all domains.
        bits_per_byte: the same per byte of text.
        curve: steps and nats at some places of the run, the end among them.
        nats_of_domain, bits_per_byte_of_domain: by domain.
        load_of_domain: for each domain the share of the slots that each expert of each sparse layer gets, (L, E).
    """

    parameters: int
    tokens: int
    cpu_seconds: float
    nats: float
    bits_per_byte: float
    curve: list[tuple[int, float]]
    nats_of_domain: dict[str, float]
    bits_per_byte_of_domain: dict[str, float]
    load_of_domain: dict[str, list[list[float]]]


def learn(name: str, steps: int, seed: int, text: RealText, sizes: Sizes) -> Learnt:
    """Train a candidate for so many steps; the learning rate has decayed to zero at their end.

    Args:
        name: of the candidate.
        steps: of `sizes.batch_size` blocks each.
        seed: of the weights and of the order of the blocks.
        text: what it learns and is scored on.
        sizes: of the run.
    """
    model = make_model(name, len(text.tokenizer), sizes.context_length, seed)
    blocks = draw_blocks(text.blocks_NS, steps * sizes.batch_size, seed)
    warmup, every = max(1, round(sizes.warmup_share * steps)), max(1, math.ceil(steps / sizes.points))
    recipe = Recipe(sizes.learning_rate, sizes.batch_size, warmup, every)
    points = list(train(model, blocks, recipe, text.heldout, muon))
    tokens = {domain: int((each.labels[:, 1:] != IGNORED).sum()) for domain, each in text.heldout.items()}
    last = points[-1]
    bits = {domain: nats / math.log(2) / text.bytes_per_token[domain] for domain, nats in last.losses.items()}
    size = {domain: tokens[domain] * text.bytes_per_token[domain] for domain in tokens}
    return Learnt(
        parameters=model.num_parameters(),
        tokens=blocks.numel(),
        cpu_seconds=last.cpu_seconds,
        nats=_mean(last.losses, tokens),
        bits_per_byte=_mean(bits, size),
        curve=[(point.step, _mean(point.losses, tokens)) for point in points],
        nats_of_domain=last.losses,
        bits_per_byte_of_domain=bits,
        load_of_domain={domain: expert_loads(model, each) for domain, each in text.heldout.items()},
    )


def _mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(values[name] * weights[name] for name in values) / sum(weights[name] for name in values)


@torch.no_grad()
def expert_loads(model: PreTrainedModel, heldout: HeldOut, batch_size: int = 32) -> list[list[float]]:
    """The share of a text's slots that each expert of each sparse layer gets, (L, E); nothing for a dense model."""
    config: Any = model.config
    if not config.sparse_layers:
        return []
    model.eval()
    count_LE = torch.zeros(len(config.sparse_layers), config.num_experts)
    for ids_BS, labels_BS in zip(heldout.input_ids.split(batch_size), heldout.labels.split(batch_size), strict=True):
        outputs = model(input_ids=ids_BS, use_cache=False, output_router_logits=True, logits_to_keep=1)
        counts = (labels_BS != IGNORED).flatten()
        for layer, expert_TK in enumerate(outputs.router_experts):
            chosen = expert_TK[counts].flatten()
            count_LE[layer] += torch.bincount(chosen, minlength=config.num_experts)[: config.num_experts]
    return (count_LE / count_LE.sum(dim=-1, keepdim=True).clamp(min=1)).tolist()
