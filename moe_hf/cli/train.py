"""`train.py` and `moe-hf train`: words on a command line become one training run, shown as it goes."""

import errno
import sys
from collections.abc import Sequence

import datasets
from transformers.utils import logging

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.base.printable import one_line
from moe_hf.cli.progress import listener_for
from moe_hf.cli.screen import Screen
from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train as the command line says, and return the exit code.

    It is 0, 1 for a failure while running, 2 for wrong input, 130 when interrupted.

    Args:
        argv: the words after the program's name; those of this process if absent.
        prog: the program's name in the help.
    """
    console, errors = Screen(), Screen(stderr=True)
    # The listener says what is being done; a bar per map would stand between its lines.
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        settings = parse_arguments(sys.argv[1:] if argv is None else argv, prog)
        report = train(settings, [listener_for(console)])
    except (ConfigError, CheckpointError, BackendUnavailableError, OSError) as error:
        # OSError is a folder that can't be written to, a full disk, or a network that fails.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; make room, and the same command goes on from the newest checkpoint" if full else ""
        errors.print(f"{prog}: error: {one_line(error)}{advice}", soft_wrap=True, style="red")
        return FAILED if isinstance(error, OSError) else WRONG_INPUT
    except KeyboardInterrupt:
        errors.print("interrupted; the same command goes on from the newest checkpoint", style="yellow")
        return INTERRUPTED
    return INTERRUPTED if report.interrupted else 0
