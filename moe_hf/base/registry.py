"""A written-out table of named parts whose misses say what was meant."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from moe_hf.base.errors import ConfigError, did_you_mean

Part = TypeVar("Part")


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
        # Mapping's own would ask `__getitem__`, and take nothing but a KeyError for absence.
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
