"""A written-out table of named parts whose misses say what was meant."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from moe_hf.base.errors import ConfigError

Part = TypeVar("Part")


def did_you_mean(given: str, allowed: list[str]) -> str:
    """A hint that names the nearest allowed word, or an empty string when none is near.

    >>> did_you_mean("attenton", ["attention", "mamba"])
    "; did you mean 'attention'?"
    """
    near = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Registry(Mapping[str, Part], Generic[Part]):
    """A read-only table from name to part.

    Written out where it stands rather than filled by decorators: an import that only registers looks unused, and a
    linter removes it.

    >>> Registry("mixer", {"attention": int})["atention"]
    Traceback (most recent call last):
    moe_hf.base.errors.ConfigError: unknown mixer 'atention'; allowed: attention; did you mean 'attention'?
    """

    def __init__(self, kind: str, parts: dict[str, Part]) -> None:
        self.kind = kind
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            allowed = sorted(self._parts)
            raise ConfigError(
                f"unknown {self.kind} {name!r}; allowed: {', '.join(allowed)}{did_you_mean(str(name), allowed)}"
            )
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
