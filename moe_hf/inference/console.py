"""What a chat needs from the place where a person types and reads."""

import threading
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

BLOCK = '"""'


class Span(NamedTuple):
    """A stretch of text in one style.

    `style` is empty, `bold`, `dim`, or `#rrggbb` for text on a background of that colour.
    """

    text: str
    style: str = ""


class Console(Protocol):
    """Reads lines and shows text; knows nothing of models and conversations.

    Attributes:
        colour: whether backgrounds are shown; if not, what they mean must stand in the text.
        can_prefill: whether `ask` can offer a text to be edited.
        can_draw_markdown: whether `answer` can draw Markdown; if not, answers are shown as they are.
        markdown: whether it does.
    """

    colour: bool
    can_prefill: bool
    can_draw_markdown: bool
    markdown: bool

    def ask(self, prefill: str = "") -> str:
        """What the user enters: one line, or several in a block that begins and ends with three quotation marks.

        Raises:
            EOFError: the user ended the input (Ctrl-D).
            KeyboardInterrupt: Ctrl-C where there was nothing to clear.
        """

    def answer(self, text: str) -> None:
        """Shows the next piece of an answer at once."""

    def end_answer(self) -> None:
        """Ends the answer's last line."""

    def show(self, lines: list[list[Span]]) -> None:
        """Shows lines that are no answer."""

    def notice(self, text: str) -> None:
        """Shows one remark."""

    def error(self, text: str) -> None:
        """Shows what went wrong."""

    def interruptible(self, stop: threading.Event) -> AbstractContextManager[None]:
        """Inside the `with`, Ctrl-C sets `stop` and does nothing else."""


def is_open_block(text: str) -> bool:
    """Whether `text` begins a block of several lines that it does not end yet.

    >>> is_open_block('\"\"\"first line'), is_open_block('\"\"\"first line\\n\"\"\"')
    (True, False)
    """
    text = text.strip()
    return text.startswith(BLOCK) and not (len(text) >= 2 * len(BLOCK) and text.endswith(BLOCK))


def without_block(text: str) -> str | None:
    """The text inside a block, or None if `text` is no block."""
    if not text.strip().startswith(BLOCK):
        return None
    return text.strip().removeprefix(BLOCK).removesuffix(BLOCK).strip("\n")
