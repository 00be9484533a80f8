"""How large a case of the mixers is, and what is measured of a layer as its input grows."""

from typing import NamedTuple

from moe_hf.bench.harness.arms import DECODE

WIDTH = 256
"""Of the layers whose time and memory are drawn against the length."""


class LayerSize(NamedTuple):
    """Width of a layer, and the tokens of a call or of the context before a decoded token; one sequence, one thread."""

    width: int
    tokens: int

    @property
    def threads(self) -> int:
        """A mixer is measured on one."""
        return 1

    def place(self, case: str, mode: str) -> str:
        """Where a number was measured.

        >>> LayerSize(768, 2048).place("Mamba-1", "forward")
        'Mamba-1, forward, 2,048 tokens, width 768'
        """
        after = "after " if mode == DECODE else ""
        return f"{case}, {mode}, {after}{self.tokens:,} tokens, width {self.width}"

    def title(self, case: str, mode: str) -> str:
        """What stands above the table of one group."""
        return self.place(case, mode) + (", per token" if mode == DECODE else "")


class Point(NamedTuple):
    """One layer at one length: CPU seconds of a call, and the most bytes that it held at once."""

    kind: str
    mode: str
    length: int
    seconds: float
    peak_bytes: int
