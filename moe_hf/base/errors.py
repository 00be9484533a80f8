"""The errors that this package raises on bad input, so that callers can tell them from bugs."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting is wrong: the text names the field, the value that was given and what is allowed."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be used: the text says what was found, what is needed and what to do."""


class BackendUnavailableError(ImportError):
    """An optional package is asked for but absent: the text says what to install."""


def did_you_mean(given: str, allowed: list[str]) -> str:
    """A hint that names the nearest allowed word, or an empty string when none is near.

    >>> did_you_mean("attenton", ["attention", "mamba"])
    "; did you mean 'attention'?"
    """
    near = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Says what a library makes of somebody's files, in errors of any kind, as a `CheckpointError`.

    The errors of this package pass as they are, and so does `OSError`: a disk or a network that fails.

    Args:
        what: is read, as it stands before "can't be read".
    """
    try:
        yield
    except (ConfigError, CheckpointError, BackendUnavailableError, OSError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{what} can't be read ({first_line(error)}); it is damaged, or of a type that the installed libraries do "
            "not know"
        ) from error


def first_line(error: BaseException) -> str:
    r"""What an error of somebody else's says, in short.

    >>> first_line(OSError("\nno such file\n\nand a page of advice")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
