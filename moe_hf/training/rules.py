"""Tables of what settings may be: ranges of numbers, and conflicts between settings."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple

from moe_hf.base.errors import ConfigError


class Range(NamedTuple):
    """Numbers that a setting takes; `below` and `above` are themselves not allowed, infinity where `infinite` says so.

    >>> str(Range(below=1))
    'at least 0 and below 1'
    """

    least: float = 0
    most: float = math.inf
    below: float = math.inf
    above: float = -math.inf
    infinite: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number is one of them."""
        if value == math.inf:
            return self.infinite
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        low = f"> {self.above:g}" if self.above > -math.inf else f"at least {self.least:g}"
        high = f" and below {self.below:g}" if self.below < math.inf else ""
        return low + (f" and at most {self.most:.0f}" if self.most < math.inf else high)


class Conflict(NamedTuple):
    """What settings must not be together.

    Attributes:
        found: true of settings, an object with a field for each, that have it.
        message: says what is wrong and what to do; names of fields in braces become their values, as they are typed,
            and `{flags}` becomes `given_flags` of `flags`.
        flags: settings that the message may name, some of which the user may have left alone.
    """

    found: Callable[[Any], Any]
    message: str
    flags: tuple[str, ...] = ()


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Nothing, if every number is within the range of its name, where it has one.

    Raises:
        ConfigError: with the name of the first that is not, as a flag, what is allowed, and the number.
    """
    for name, value in values.items():
        allowed = ranges.get(name)
        if allowed is None or not isinstance(value, (int, float)) or allowed.holds(value):
            continue
        odd = isinstance(value, float) and not math.isfinite(value) and not allowed.infinite
        raise ConfigError(f"--{name} must be {'a finite number' if odd else allowed}, got {value}")


def check_conflicts(settings: Any, conflicts: Sequence[Conflict], given: Mapping[str, Any]) -> None:
    """Nothing, if there is no conflict.

    Args:
        settings: an object with a field for each setting.
        conflicts: what must not be.
        given: what the user chose, by name and as it was typed: a library may have rewritten it in `settings`.

    Raises:
        ConfigError: with the message of the first.
    """
    for conflict in conflicts:
        if conflict.found(settings):
            values = {name: _as_typed(value) for name, value in {**vars(settings), **given}.items()}
            raise ConfigError(conflict.message.format_map({**values, "flags": given_flags(conflict.flags, given)}))


def given_flags(names: Sequence[str], given: Mapping[str, Any]) -> str:
    """Those of the settings that were given, as the words of a command line.

    >>> given_flags(["size", "rate", "names", "fast"], {"fast": True, "names": ["a", ""], "size": 3})
    "--size 3, --names a '' and --fast"
    """
    flags = [
        f"--{name}" if given[name] is True else f"--{name} {_as_word(given[name])}" for name in names if name in given
    ]
    return " and ".join([", ".join(flags[:-1]), flags[-1]] if len(flags) > 1 else flags)


@dataclass
class Checked:
    """A dataclass whose values are checked whenever one is made.

    Raises:
        ConfigError: a value is out of its range in `RANGES`, or there is one of `CONFLICTS`.
    """

    RANGES: ClassVar[Mapping[str, Range]] = {}
    CONFLICTS: ClassVar[Sequence[Conflict]] = ()

    def __post_init__(self) -> None:
        check_ranges(vars(self), self.RANGES)
        # Nobody says here what was given: what differs from its default was.
        defaults = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(self)
        }
        given = {name: value for name, value in vars(self).items() if value != defaults[name]}
        check_conflicts(self, self.CONFLICTS, given)


def _as_typed(value: Any) -> Any:
    """A list as the words of a command line, a member of an enumeration as its word; anything else as it is."""
    if not isinstance(value, list):
        return getattr(value, "value", value)
    return " ".join(map(_as_word, value)) or "nothing"


def _as_word(value: Any) -> str:
    """The value as a shell takes it: in quotes where it has to be, a list as one word after the other."""
    if isinstance(value, list):
        return " ".join(map(_as_word, value))
    word = json.dumps(value) if isinstance(value, dict) else str(_as_typed(value))
    return shlex.quote(word.removesuffix(".0") if isinstance(value, float) else word)
