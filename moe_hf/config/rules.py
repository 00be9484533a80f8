"""Says which values fields of a configuration may have, as rows of a table."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Beyond these no machine could hold the model, or float32 a forward's numbers.
MOST_ROWS, MOST_FACTOR = 2**31 - 1, 1e6


class Rule(NamedTuple):
    """What some fields may hold.

    Attributes:
        names: the fields, separated by spaces.
        holds: whether a value is allowed.
        allowed: which values are, as it stands behind "it must be".
    """

    names: str
    holds: Callable[[Any], bool]
    allowed: str


def one_of(name: str, words: Iterable[str]) -> Rule:
    """The rule for a field that holds one of several words."""
    words = tuple(words)
    return Rule(name, lambda value: value in words, f"one of {', '.join(words)}")


def integer(names: str, least: int, most: int = MOST_ROWS) -> Rule:
    """The rule for fields that hold an integer in [least, most]."""
    return Rule(names, lambda value: least <= value <= most, f"an integer >= {least} and <= {most}")


def at_most(names: str, most: float) -> Rule:
    """The rule for fields that hold a number in (0, most]."""
    return Rule(names, lambda value: 0 < value <= most, f"a finite number > 0 and <= {most:g}")


def optional(rule: Rule) -> Rule:
    """The same rule for fields that may be None as well."""
    return Rule(rule.names, lambda value: value is None or rule.holds(value), f"None or {rule.allowed}")
