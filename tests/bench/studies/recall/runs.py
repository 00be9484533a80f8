"""Runs of recall as the tests make them up: a single one, and a whole sweep of one mixer."""

from typing import Any

from moe_hf.bench.studies.recall.learning import Recipe
from moe_hf.bench.studies.recall.results import Key
from moe_hf.bench.studies.recall.sweep import RATES, SEEDS
from moe_hf.bench.studies.recall.tasks import TASKS

QUICK = Recipe(steps=3, sweep_steps=2, batch_size=4, warmup_steps=1, eval_every=1, test_examples=8)
FIXED = Recipe(steps=1500, sweep_steps=500)


def run(key: Key, accuracy: float, steps: int = 400, loss: float = 1.0) -> dict[str, Any]:
    found = {"accuracy": dict.fromkeys(TASKS[key.task].variants, accuracy), "loss": loss, "steps": steps}
    curve = [[steps // 2, 1.0, accuracy / 2], [steps, 2.0, accuracy]]
    return {**key._asdict(), **found, "cpu_seconds": 2.0, "num_parameters": 71232, "curve": curve}


def whole_sweep(arm: str, accuracy: float) -> dict[Key, dict[str, Any]]:
    """All runs of one mixer, the middle rate being the best."""
    keys = [Key("mqar", arm, rate, 0, FIXED.sweep_steps) for rate in RATES]
    runs = {key: run(key, accuracy) if key.learning_rate == RATES[1] else run(key, 0.1, loss=2.0) for key in keys}
    for task in TASKS:
        for seed in SEEDS:
            key = Key(task, arm, RATES[1], seed, FIXED.steps)
            runs[key] = run(key, accuracy)
    return runs
