"""Runs a command and turns what went wrong into an exit code and one line on stderr."""

import sys
from collections.abc import Callable

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.base.printable import one_line


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
