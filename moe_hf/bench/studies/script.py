"""The ceremony of every study that is run by `python -m`: its words, its log and its exit code."""

import logging
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser

from moe_hf.base.exit_code import exit_code


def parsed(kinds: Sequence[Any], words: Sequence[str] | None, module: str, description: str | None) -> Any:
    """One dataclass of each kind, filled from the command line; from here on the log is shown.

    Args:
        kinds: dataclasses, whose fields are the flags; one without a default has to be given.
        words: of the command line; None takes the process's own.
        module: that is run.
        description: what stands above the flags in its help.
    """
    parser = HfArgumentParser(list(kinds), prog=_prog(module), description=description)
    for name in [one.name for kind in kinds for one in fields(kind) if one.default is True and "_" in one.name]:
        # As argparse spells it; HfArgumentParser knows --no_x_y and --no-x-y.
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=SUPPRESS)
    # A flag that no dataclass knows is an error, and so is a missing one: both end with code 2.
    found = parser.parse_args_into_dataclasses(args=None if words is None else list(words))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return found


def run_study(main: Callable[[], int | None], module: str) -> None:
    """End the process with the exit code of the study; what went wrong is said in one line."""
    raise SystemExit(exit_code(main, _prog(module)))


def _prog(module: str) -> str:
    return f"python -m {module}"
