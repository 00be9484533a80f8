"""Draws an answer as Markdown while it comes: finished blocks stay, the block that is being written is drawn anew."""

import re
import time
from collections import Counter

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.markdown import Markdown
from rich.text import Text

from moe_hf.cli.screen import Screen

# Drawing takes at most a fifth of the time, however long the block is.
_DRAWN_SHARE = 5
_MOST_PER_SECOND = 15
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# What shows in another form, or not at all: the language of a fence, the number of an item, the name of a character.
_SHOWN_OTHERWISE = re.compile(r"^[ >]*(?:`{3,}|~{3,}) *([^\s`]+) *$|^[ >]*(\d{1,9})[.)] |&(#?\w+);", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ERASE_LINE, _ERASE_DOWN = "\x1b[K", "\x1b[J"


class MarkdownAnswer:
    """One answer on a terminal.

    What is finished is written once and scrolls away as any text does. Of the block at the end, which is erased and
    drawn anew, no more is shown than fits the screen until it is finished: nothing is lost, nothing above changes.

    Args:
        screen: a terminal; text passes through its filter of control characters.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._text = ""
        # Rows of the block at the end, and the width that they were drawn for.
        self._rows, self._width = 0, 0
        self._not_before = 0.0

    def feed(self, text: str) -> None:
        """Takes the next piece of the answer."""
        self._text += text
        end = finished_blocks(self._text)
        if end:
            finished, self._text = self._text[:end], self._text[end:]
            self._write(f"{self._drawn(finished)}\n\n")
        elif time.monotonic() < self._not_before:
            return
        started = time.monotonic()
        lines = self._drawn(self._text).split("\n")[-max(self._screen.height - 1, 1) :]
        self._write("\n".join(lines))
        self._rows = len(lines)
        took = time.monotonic() - started
        self._not_before = started + max(1 / _MOST_PER_SECOND, _DRAWN_SHARE * took)

    def end(self) -> None:
        """Writes what is left; the cursor stands at the beginning of a line then."""
        if self._text.strip():
            self._write(f"{self._drawn(self._text)}\n")
        else:
            self._write("")
        self._text = ""

    def _drawn(self, text: str) -> str:
        drawn = self._printed(as_markdown(text))
        return drawn if keeps_all(text, drawn) else self._printed(Text(text))

    def _printed(self, drawing: Markdown | Text) -> str:
        # One column less than there are: in the last one, terminals differ in where the cursor goes.
        with self._screen.capture() as capture:
            self._screen.print(drawing, width=max(self._screen.width - 1, 2))
        # Rich fills lines up; blanks at their ends would be copied from the terminal with them.
        return "\n".join(line.rstrip(" ") for line in capture.get().split("\n")).strip("\n")

    def _write(self, text: str) -> None:
        """Puts `text` in the place of the block that was being drawn, in one write, so that nothing flickers."""
        if self._rows and self._width == self._screen.width:
            # Line by line: a terminal that is cleared as a whole may keep what stood there in its history.
            up = f"\x1b[{self._rows - 1}A" if self._rows > 1 else ""
            text = "\r" + up + text.replace("\n", f"{_ERASE_LINE}\n") + _ERASE_LINE + _ERASE_DOWN
        elif self._rows:
            # In a window of another width the rows have been broken anew, nobody knows into how many: what is there
            # stays, and the block is drawn again below it.
            text = "\n" + text
        self._screen.file.write(text)
        self._screen.file.flush()
        self._rows, self._width = 0, self._screen.width


def finished_blocks(text: str) -> int:
    """Where the Markdown blocks end that nothing to come can change; 0 if there are none.

    A block ends at an empty line, unless that stands in a fence of code or what follows is indented.

    >>> finished_blocks("one\\n\\ntwo")
    5
    """
    end = position = 0
    fence = ""
    after_empty = False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if after_empty and line.strip() and not fence and not line[0].isspace():
            end = position
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line[mark.end() :].strip():
            fence = ""
        after_empty = not line.strip()
        position += len(line)
    return end


def as_markdown(text: str) -> Markdown:
    """The text as rich draws Markdown, but more of it: HTML is text, a line end is one, and links show where they lead.

    What a language model writes in tags is not to vanish. An address that is defined elsewhere stays where it stands,
    and a picture is a link to it.
    """
    drawn = Markdown("", hyperlinks=False)
    parser = (
        MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable(["reference", "image"])
    )
    drawn.parsed = parser.parse(text)
    for token in drawn.parsed:
        for child in token.children or ():
            _keep_line_end(child)
    return drawn


def keeps_all(text: str, drawn: str) -> bool:
    """Whether every letter and digit of a text is in its drawing; only marks may be missing, if anything shows.

    Rich and the parser drop what is nested deeply, what stands beside a table's columns, and what finds no room.

    >>> keeps_all("| a |\\n|---|\\n| 1 | 2 |", " a \\n 1 ")
    False
    """
    drawn = _COLOUR.sub("", drawn)
    lost = _letters(text) - _letters(drawn)
    otherwise = _letters("".join("".join(groups) for groups in _SHOWN_OTHERWISE.findall(text)))
    return not lost - otherwise and (bool(drawn.strip()) or not text.strip())


def _letters(text: str) -> Counter[str]:
    return Counter(filter(str.isalnum, text))


def _keep_line_end(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"
