"""`python -m moe_hf.bench.studies.worth --train FILE --heldout FILE --output_dir docs`: makes what runs are missing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.script import parsed, run_study
from moe_hf.bench.studies.worth.candidates import CANDIDATES, candidate
from moe_hf.bench.studies.worth.learning import Sizes, learn, measure_costs
from moe_hf.bench.studies.worth.real_text import real_text
from moe_hf.bench.studies.worth.records import Key, Records
from moe_hf.bench.studies.worth.report import write_report

MODULE = "moe_hf.bench.studies.worth"
logger = logging.getLogger(__name__)


@dataclass
class Arguments:
    """What is run, and where the numbers go."""

    output_dir: Path = field(metadata={"help": "folder to write data/, images/ and the tables of worth.md into"})
    train: Path | None = field(default=None, metadata={"help": 'JSON lines of {"text", "domain"} to train on'})
    heldout: Path | None = field(default=None, metadata={"help": "the like, to score on"})
    candidates: list[str] = field(
        default_factory=lambda: list(CANDIDATES), metadata={"help": f"of: {'; '.join(CANDIDATES)}"}
    )
    minutes: list[float] = field(default_factory=lambda: [5.0], metadata={"help": "budgets, in CPU minutes"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "of weights and order"})
    turns: int = field(default=9, metadata={"help": "samples of a step's cost"})
    measure: bool = field(
        default=False, metadata={"help": "measure the costs of all candidates afresh, and run nothing"}
    )
    report: bool = field(
        default=False, metadata={"help": "write tables and pictures of what there is, and run nothing"}
    )
    vocab_size: int = field(default=Sizes().vocab_size, metadata={"help": "of the tokenizer"})
    context_length: int = field(default=Sizes().context_length, metadata={"help": "tokens of a block"})
    batch_size: int = field(default=Sizes().batch_size, metadata={"help": "blocks of a step"})


def main(words: Sequence[str] | None = None) -> None:
    """Measure what steps cost, make the runs that are missing, then write tables and pictures of all there are.

    Raises:
        ConfigError: an unknown candidate, a budget or a number of turns that is not positive, or no text to run on.
        CheckpointError: the records in the output folder are of other sizes.
    """
    description = (
        "Train dense models and Mixtures of Experts on real text, each for the same CPU minutes. A study that is "
        "broken off goes on with the first run that is missing."
    )
    (given,) = parsed([Arguments], words, MODULE, description)
    for name in given.candidates:
        candidate(name)
    if min(given.minutes) <= 0 or given.turns < 1:
        raise ConfigError(f"minutes={given.minutes} and turns={given.turns} have to be positive")
    sizes = Sizes(given.vocab_size, given.context_length, given.batch_size)
    records = Records(given.output_dir / "data" / "worth.json", sizes)
    if not given.report:
        _run(given, records, sizes)
    write_report(records, given.output_dir)


def _run(given: Arguments, records: Records, sizes: Sizes) -> None:
    if given.train is None or given.heldout is None:
        raise ConfigError(
            f"train={given.train} and heldout={given.heldout} leave nothing to learn; give both files, or --report"
        )
    text = real_text(given.train, given.heldout, sizes.vocab_size, sizes.context_length)
    logger.info("%d blocks of %d tokens, %d domains", *text.blocks_NS.shape, len(text.heldout))
    unknown = given.candidates if given.measure else [n for n in given.candidates if n not in records.costs()]
    if unknown:
        records.add_costs(measure_costs(unknown, text, sizes, given.turns), afresh=given.measure)
        for name, cost in records.costs().items():
            logger.info("%s: %.3f CPU seconds per step, %.2f times the twin's", name, cost["seconds"], cost["ratio"])
    if given.measure:
        return
    for minutes in given.minutes:
        for seed in given.seeds:
            for name in given.candidates:
                key = Key(name, minutes, seed)
                if records.has(key):
                    continue
                steps = records.steps_of(name, minutes)
                learnt = learn(name, steps, seed, text, sizes)
                records.add_run(key, steps, learnt)
                logger.info(
                    "%s, %g CPU minutes, seed %d: %d steps, %.4f nats, %.4f bits per byte; took %.0f CPU seconds",
                    *key,
                    steps,
                    learnt.nats,
                    learnt.bits_per_byte,
                    learnt.cpu_seconds,
                )


if __name__ == "__main__":
    run_study(main, MODULE)
