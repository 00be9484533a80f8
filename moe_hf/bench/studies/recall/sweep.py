"""The sweep: for each mixer and task the best learning rate, then several seeds at it, remembered in one file."""

import logging
from collections.abc import Sequence
from typing import Any

from moe_hf.bench.studies.recall.arms import make_model
from moe_hf.bench.studies.recall.learning import Recipe, learn
from moe_hf.bench.studies.recall.results import SWEPT, Key, Results, best_rate
from moe_hf.bench.studies.recall.tasks import TASKS

logger = logging.getLogger(__name__)

RATES = (2e-3, 5e-3, 1e-2)
"""Learning rates that are tried: that of recurrent models decides whether they recall (2508.19029)."""
SEEDS = (1, 2, 3)
"""Of the runs that are reported; other ones than the sweep's."""
_SWEEP_SEED = 0


def sweep(task: str, arm: str, results: Results, recipe: Recipe, seeds: Sequence[int] = SEEDS) -> None:
    """Make the runs of one mixer on one task, and those that choose its learning rate, unless the results have them."""
    tried = [_run(Key(SWEPT, arm, rate, _SWEEP_SEED, recipe.sweep_steps), results, recipe) for rate in RATES]
    rate = best_rate(tried, recipe.solved)
    for seed in seeds:
        _run(Key(task, arm, rate, seed, recipe.steps), results, recipe)


def _run(key: Key, results: Results, recipe: Recipe) -> dict[str, Any]:
    known = results.runs().get(key)
    if known is not None:
        return known
    task = TASKS[key.task]
    model = make_model(key.arm, task, key.seed)
    learnt = learn(model, task, key.learning_rate, key.seed, recipe, key.max_steps)
    found = {"num_parameters": model.num_parameters(), **learnt._asdict()}
    results.add(key, found)
    logger.info(
        "%s, %s, rate %g, seed %d: accuracy %.3f after %d steps, %.1f CPU seconds",
        key.arm,
        key.task,
        key.learning_rate,
        key.seed,
        learnt.accuracy[task.trained],
        learnt.steps,
        learnt.cpu_seconds,
    )
    # As the file has it: a new run and a remembered one look the same, lists for tuples.
    return results.runs()[key]
