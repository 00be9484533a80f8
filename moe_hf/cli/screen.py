"""Where commands print with rich: text is shown as it is, never read as markup, and never steers the terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from moe_hf.base.printable import printable


class Screen(Console):
    """A rich console for names that come from outside: `o2[/x]` is a folder's name, and escape sequences are dropped.

    Args:
        options: as rich's Console takes them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | options))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is printed, without control characters but rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def in_bytes(size: int) -> str:
    """A number of bytes as people read it.

    >>> in_bytes(3_700_000), in_bytes(1_490_000_000)
    ('3.7 MB', '1.49 GB')
    """
    for unit, bytes_each, places in (("GB", 1e9, 2), ("MB", 1e6, 1)):
        # What would be rounded to it as well.
        if size >= 0.99995 * bytes_each:
            return f"{size / bytes_each:.{places}f} {unit}"
    return f"{size / 1e3:.1f} kB"
