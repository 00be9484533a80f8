"""The sweep: for each mixer and task the best learning rate, then several seeds at it, remembered in one file."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.studies.recall.arms import make_model
from moe_hf.bench.studies.recall.learning import Recipe, learn
from moe_hf.bench.studies.recall.tasks import TASKS

logger = logging.getLogger(__name__)

RATES = (2e-3, 5e-3, 1e-2)
"""Learning rates that are tried: that of recurrent models decides whether they recall (2508.19029)."""
SEEDS = (1, 2, 3)
"""Of the runs that are reported; other ones than the sweep's."""
SWEPT = "mqar"
"""The task that chooses a mixer's learning rate; it is the hardest."""
_SWEEP_SEED = 0


class Key(NamedTuple):
    """What one run is of; `max_steps` tells the sweep's from the others."""

    task: str
    arm: str
    learning_rate: float
    seed: int
    max_steps: int


class Results:
    """Finished runs in a JSON file, which several processes may add to at once.

    Raises:
        CheckpointError: the file holds runs of another recipe, or no runs at all.
    """

    def __init__(self, file: Path, recipe: Recipe) -> None:
        self._file = file
        self._recipe = recipe._asdict()
        self._lock = FileLock(file.with_name(file.name + ".lock"))
        self.runs()

    def runs(self) -> dict[Key, dict[str, Any]]:
        """Every finished run."""
        if not self._file.is_file():
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            recipe, runs = content["recipe"], content["runs"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{self._file} holds no results of recall; name another file") from None
        if recipe != self._recipe:
            raise CheckpointError(
                f"{self._file} holds runs of another recipe, {recipe}; name another file, or delete this one"
            )
        return {Key(*(run[name] for name in Key._fields)): run for run in runs}

    def add(self, key: Key, found: dict[str, Any]) -> None:
        """Remember a finished run."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            runs = [*self.runs().values(), {**key._asdict(), **found}]
            content = {"recipe": self._recipe, "machine": describe_machine(), "runs": runs}
            write_json(content, self._file)


def best_rate(runs: Iterable[dict[str, Any]], solved: float) -> float:
    """The learning rate of the run that solved the task in the fewest steps; if none did, of that with the least loss.

    The loss tells runs apart that have not answered better than by chance yet.
    """

    def merit(run: dict[str, Any]) -> tuple[bool, float]:
        has_it = max(accuracy for _, _, accuracy in run["curve"]) >= solved
        return has_it, -run["steps"] if has_it else -run["loss"]

    return max(runs, key=merit)["learning_rate"]


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
    return results.runs()[key]
