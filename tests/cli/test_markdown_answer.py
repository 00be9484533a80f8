"""An answer that is drawn while it comes ends as if it had been drawn at once, on a terminal of any height."""

import io
import random
import re

import pytest

from moe_hf.cli.markdown_answer import MarkdownAnswer, as_markdown, finished_blocks
from moe_hf.cli.screen import Screen

TEXT = """# Heading

Some **bold** text with `code`, a [link](http://example.com/x) and <b>tags</b>;
#include <stdio.h> stays.

1. one
2. two

   more of two
3. three

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):

    return x + 1
```

- a long list
- that is
- longer than
- the screen
- by several
- items

漢字 and the end."""
WIDTH = 32


class Terminal:
    """What is to be seen, and what scrolled away, after text with the few sequences that are written."""

    def __init__(self, height: int) -> None:
        self.rows: list[list[str]] = [[]]
        self.height, self.row, self.column = height, 0, 0

    def write(self, text: str) -> None:
        for sequence, character in re.findall(r"(\x1b\[[\d;]*[A-Za-z])|(.)", text, re.DOTALL):
            if sequence:
                self._obey(sequence[-1], int(re.sub(r"\D", "", sequence.split(";")[0]) or 1))
            elif character == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append([])
            elif character == "\r":
                self.column = 0
            else:
                row = self.rows[self.row]
                row += [" "] * (self.column + 1 - len(row))
                row[self.column] = character
                self.column += 1
                assert self.column < WIDTH

    def _obey(self, what: str, number: int) -> None:
        if what == "A":
            # What has scrolled away can't be reached.
            self.row = max(self.row - number, len(self.rows) - self.height, 0)
        elif what in "KJ":
            del self.rows[self.row][self.column :]
            if what == "J":
                del self.rows[self.row + 1 :]
        else:
            assert what == "m", what

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]


def screen(height: int = 10, width: int = WIDTH) -> Screen:
    return Screen(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard")


def drawn_at_once(text: str) -> list[str]:
    with (it := screen()).capture() as capture:
        it.print(as_markdown(text), width=WIDTH - 1)
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", capture.get()).split("\n") if line.strip()]


@pytest.mark.parametrize("height", [3, 6, 100])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_pieces_all_of_it_is_there_once_and_in_order(height, seed, monkeypatch) -> None:
    # Every piece is drawn, however quickly they come.
    monkeypatch.setattr("moe_hf.cli.markdown_answer._MOST_PER_SECOND", 1e9)
    monkeypatch.setattr("moe_hf.cli.markdown_answer._DRAWN_SHARE", 0)
    where, terminal, choose = screen(height), Terminal(height), random.Random(seed)
    answer, position = MarkdownAnswer(where), 0
    while position < len(TEXT):
        end = position + choose.randint(1, 9)
        answer.feed(TEXT[position:end])
        position = end
    answer.end()
    terminal.write(where.file.getvalue())
    assert [line for line in terminal.lines if line.strip()] == drawn_at_once(TEXT)
    assert terminal.lines[-1] == ""


def test_what_was_not_drawn_in_time_is_there_at_the_end() -> None:
    where, terminal = screen(), Terminal(10)
    answer = MarkdownAnswer(where)
    for character in "some **bold** words":
        answer.feed(character)
    answer.end()
    terminal.write(where.file.getvalue())
    assert terminal.lines == ["some bold words", ""]


def test_a_terminal_of_another_width_loses_nothing() -> None:
    where = screen()
    answer = MarkdownAnswer(where)
    answer.feed("first words")
    where.width = 20
    answer._not_before = 0.0
    answer.feed(" and more")
    answer.end()
    # Nobody knows where the old row is now: it stays, and all is drawn again below it.
    assert where.file.getvalue().startswith("first words\nfirst words and\nmore\r\x1b[1A")


def test_an_empty_answer_draws_nothing() -> None:
    where = screen()
    answer = MarkdownAnswer(where)
    answer.feed(" \n")
    answer.end()
    terminal = Terminal(10)
    terminal.write(where.file.getvalue())
    assert terminal.lines == [""]


def test_the_model_does_not_steer_the_terminal() -> None:
    where = screen()
    answer = MarkdownAnswer(where)
    answer.feed("a\x1b[2J\x07 [red]b[/red] [x](http://a\x1b]8;;b)\n\n```\n\x1b[31m\n```\n")
    answer.end()
    shown = where.file.getvalue()
    assert set(re.findall(r"\x1b\[[\d;]*([A-Za-z])", shown)) <= set("AKJm")
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert "[red]b[/red]" in shown


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one", 0),
        ("one\n\n", 0),
        ("one\n\ntwo", 5),
        ("one\n\ntwo\n\nthree", 10),
        # The paragraph may belong to the item of a list.
        ("- one\n\n  two", 0),
        ("```\none\n\ntwo", 0),
        ("```\none\n\ntwo\n```\n\nthree", 18),
        ("~~~\n```\n\ntwo", 0),
        ("````\n```\n\ntwo", 0),
        ("one\n \ntwo", 6),
    ],
)
def test_a_block_ends_where_nothing_to_come_can_change_it(text, end) -> None:
    assert finished_blocks(text) == end


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[r]: http://x.org\n\nsee [r]", ["http://x.org", "[r]"]),
        ("![i](http://e.org/x.png)", ["http://e.org/x.png"]),
        ("> " * 3000 + "x", ["x"]),
        ("- " * 40 + "deep", ["deep"]),
        ("````…a", ["…a"]),
        ("```python", ["python"]),
        ("````…", ["…"]),
        ('[a](http://b.org "title")', ["http://b.org", "title"]),
        ("| a |\n|---|\n| 1 | second |", ["second"]),
    ],
)
def test_nothing_that_is_said_vanishes(text, shown) -> None:
    where, terminal = screen(), Terminal(10)
    answer = MarkdownAnswer(where)
    answer.feed(text)
    answer.end()
    terminal.write(where.file.getvalue())
    said = "".join(terminal.lines)
    assert [words for words in shown if words not in said] == []


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("1. a\n1. b\n1. c", "3 c"),
        ("a &amp; **b** &lt;c", "a & b <c"),
        ("> ```py\n> x\n> ```", "x"),
        ("7) one\n7) two", "8 two"),
        (r"a\*b \_c", "a*b _c"),
        ("a\n\n***", "-----"),
    ],
)
def test_what_shows_in_another_form_is_drawn(text, drawn) -> None:
    where, terminal = screen(), Terminal(10)
    answer = MarkdownAnswer(where)
    answer.feed(text)
    answer.end()
    terminal.write(where.file.getvalue())
    assert drawn in "\n".join(terminal.lines)
    assert "```" not in "".join(terminal.lines)
