"""Text from outside cannot steer the terminal that shows it."""

import json

import pytest

from moe_hf.base.printable import json_line, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 \t\n", "plain é 漢 \t\n"),
        ("\x1b]0;title\x07", "]0;title"),
        ("\x9b2J\x85\x7f", "2J"),
        ("a\r\x08b", "ab"),
        ("half \ud800", "half \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_control_characters_are_dropped_and_halves_replaced(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_joins_what_stood_on_several() -> None:
    assert one_line(OSError("no such\n\n   file\x1b[0m")) == "no such file[0m"


@pytest.mark.parametrize("value", ["\x9b2J", "line\u2028end", "\ud800", {"é": ["\x7f\n"]}])
def test_a_json_line_holds_nothing_that_steers_and_reads_back_whole(value) -> None:
    line = json_line(value)
    assert json.loads(line) == value
    assert printable(line) == line
    assert len(line.splitlines()) == 1
    line.encode()
