"""The errors that this package raises on bad input, so that callers can tell them from bugs."""

import sys
from collections.abc import Callable

from moe_hf.base.printable import one_line


class ConfigError(ValueError):
    """A setting is wrong: the text names the field, the value that was given and what is allowed."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be used: the text says what was found, what is needed and what to do."""


class BackendUnavailableError(ImportError):
    """An optional package is asked for but absent: the text says what to install."""


def exit_code(call: Callable[[], int | None], prog: str) -> int:
    """The exit code of a command; what went wrong is said in one line on stderr.

    It is what the call returns (0 for None), 1 for a failure while running, 2 for wrong input, 130 for Ctrl-C.

    Args:
        call: the command.
        prog: what the line calls it.
    """
    try:
        return call() or 0
    except (ConfigError, CheckpointError, BackendUnavailableError, OSError) as error:
        # OSError is a network or a disk that fails.
        sys.stderr.write(f"{prog}: {one_line(error)}\n")
        return 1 if isinstance(error, OSError) else 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130
