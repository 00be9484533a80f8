"""`python -m moe_hf.bench.studies.recall --output_dir docs`: runs the sweep and writes its tables and picture."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.recall.arms import ARMS
from moe_hf.bench.studies.recall.learning import Recipe
from moe_hf.bench.studies.recall.report import missed_gates, summarise, write_report
from moe_hf.bench.studies.recall.results import Results
from moe_hf.bench.studies.recall.sweep import sweep
from moe_hf.bench.studies.recall.tasks import TASKS
from moe_hf.bench.studies.script import parsed, run_study

MODULE = "moe_hf.bench.studies.recall"
logger = logging.getLogger(__name__)


@dataclass
class Arguments:
    """What is run, and where the numbers go."""

    output_dir: Path = field(metadata={"help": "folder to write data/ and images/ into"})
    mixers: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"of {', '.join(ARMS)}"})
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": f"of {', '.join(TASKS)}"})
    steps: int = field(default=Recipe().steps, metadata={"help": "of a reported run, at most"})
    sweep_steps: int = field(default=Recipe().sweep_steps, metadata={"help": "of a sweep's run, at most"})


def main(words: Sequence[str] | None = None) -> int:
    """Make what runs are missing, then write the table and the picture of all there are.

    Returns:
        1 if a mixer missed its gate, else 0.

    Raises:
        ConfigError: a mixer or a task that there is not.
        CheckpointError: the results in the output folder are of another recipe.
    """
    description = (
        "Let a small model of each mixer learn recall, copying and induction, its learning rate swept. A run that is "
        "broken off goes on where it was."
    )
    (given,) = parsed([Arguments], words, MODULE, description)
    for chosen, allowed in ((given.mixers, ARMS), (given.tasks, TASKS)):
        for name in chosen:
            if name not in allowed:
                raise ConfigError(f"{name!r} is not allowed; it must be one of {', '.join(allowed)}")
    recipe = Recipe(steps=given.steps, sweep_steps=given.sweep_steps)
    results = Results(given.output_dir / "data" / "recall.json", recipe)
    for task in given.tasks:
        for arm in given.mixers:
            sweep(task, arm, results, recipe)
    summary = summarise(results.runs(), recipe)
    write_report(summary, given.output_dir)
    missed = missed_gates(summary)
    for line in missed:
        logger.warning(line)
    return 1 if missed else 0


if __name__ == "__main__":
    run_study(main, MODULE)
