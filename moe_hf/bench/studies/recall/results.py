"""Finished runs, remembered in one file that several processes may add to, and the best learning rate among them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.studies.recall.learning import Recipe

SWEPT = "mqar"
"""The task that chooses a mixer's learning rate; it is the hardest."""


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
        # Beside the file, which each write replaces: a lock on it would be on the old one.
        self._lock = FileLock(file.with_name(file.name + ".lock"))
        # For its errors alone, before hours of runs.
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
            # Read again under the lock: another process may have added runs since.
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
