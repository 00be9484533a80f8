"""Makes text from outside safe to print: whatever it holds, it does not steer the terminal."""

import json
from typing import Any

# Control characters but tab and line end, C1 (one-byte escape sequences) among them, and halves of surrogate pairs,
# which no stream can encode.
_DROPPED: dict[int, str | None] = {code: None for code in [*range(32), *range(127, 160)] if code not in (9, 10)}
_DROPPED |= dict.fromkeys(range(55296, 57344), "�")

# What json.dumps leaves as it is although a terminal, or a reader of lines, takes it for more than a character.
_ESCAPED = {code: f"\\u{code:04x}" for code in [*range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000)]}


def printable(text: str) -> str:
    r"""The text without control characters; tab and line end stay.

    >>> printable("red\x1b[31m \x9b2J name")
    'red[31m 2J name'
    """
    return text if text.isprintable() else text.translate(_DROPPED)


def one_line(text: object) -> str:
    r"""The text of anything, an error say, without control characters and on one line.

    >>> one_line(ValueError("no such\n  file \x07"))
    'no such file'
    """
    return " ".join(printable(str(text)).split())


def json_line(value: Any) -> str:
    r"""The value as JSON on one line that can be printed; all of it can be read back.

    >>> json_line({"é": "\x9b2J"}) == '{"é": "\\u009b2J"}'
    True
    """
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPED)
