"""How a thing is asked for: patterns that training draws, patterns that it never draws, and the slips of people."""

import functools
import re
from random import Random
from typing import Literal, NamedTuple


class Wordings(NamedTuple):
    """The ways to ask for one thing.

    In a pattern, `(a|b|)` stands for one of `a`, `b` and nothing, and `{x}` for a slot.

    Attributes:
        trained: the patterns that training draws.
        new: the patterns that it never draws. They differ from the trained ones in how the sentence is built.
        room: where words of politeness fit: before and after it, only before it (where its last words are what counts),
            or nowhere (where they would make it another thing to say).
    """

    trained: tuple[str, ...]
    new: tuple[str, ...]
    room: Literal["around", "before", "none"] = "around"


_MARKS = re.compile(r"[?.!,:;\"']")
_STRAY_BLANK = re.compile(r" ([?.,:])")
_SLOT = re.compile(r"\{\w+\}")
_SMALL_WORDS = {"a", "an", "the", "is", "are", "{is}", "of", "me", "to", "there"}
_BEFORE = (
    "please", "hey,", "hi,", "hello,", "ok,", "moe,", "well,", "quick question:", "one more:", "hey moe,",
    "excuse me,", "next:",
    "can you help me?", "i have a question:",
)  # fmt: skip
_AFTER = (" please", ", please", " moe", "?", "??", "!", " thanks", ", thank you", " ...", ", moe", " pls")


def expanded(rng: Random, wordings: Wordings, new: bool = False) -> str:
    """One sentence of the trained patterns, or of the new ones, with its slots still open."""
    parts = _parts(rng.choice(wordings.new if new else wordings.trained))
    return _tidy("".join(rng.choice(part) if len(part) > 1 else part[0] for part in parts))


# The patterns are few, and drawn thousands of times.
@functools.cache
def _parts(pattern: str) -> tuple[tuple[str, ...], ...]:
    pieces = re.split(r"(\([^()]*\))", pattern)
    return tuple(tuple(piece[1:-1].split("|")) if piece[:1] == "(" else (piece,) for piece in pieces)


def core(text: str) -> str:
    """The text without what `hurried` may drop: capitals, marks, the words that a telegram saves.

    >>> core("What's the capital of {x}?")
    'whats capital {x}'
    """
    return " ".join(word for word in _MARKS.sub("", text.lower()).split() if word not in _SMALL_WORDS)


def hurried(rng: Random, template: str, slots: dict[str, object], room: str = "around", share: float = 0.5) -> str:
    """The template with its slots filled, as a person types it: a `share` of them in a hurry.

    The others are left as they are. The hurried may lose capitals, apostrophes, small words and the final mark, get a
    slip of the keys, and words of politeness before and after. Slots stay as they are, except that `{x}` goes with the
    template into small letters: the answer must not depend on its capitals.
    """
    if rng.random() < share:
        text = template
        if rng.random() < 0.4:
            text = text.replace("'", "")
        if rng.random() < 0.4 and text[-1] in ".?":
            text = text[:-1]
        if rng.random() < 0.12:
            text = _without_small_word(rng, text)
        if rng.random() < 0.15 and room != "none":
            text = f"{rng.choice(_BEFORE)} {_small_start(text)}"
            text = text if rng.random() < 0.5 else text[0].upper() + text[1:]
        if rng.random() < 0.12 and room == "around":
            text = text.rstrip(".?") + rng.choice(_AFTER)
        if rng.random() < 0.5:
            text = _lower(text)
            slots = {name: _lower(value) if name == "x" else value for name, value in slots.items()}
        if rng.random() < 0.07:
            text = _slip(rng, text)
        template = text
    return template.format(**slots)


def _tidy(text: str) -> str:
    return _STRAY_BLANK.sub(r"\1", " ".join(text.split()))


def _lower(text: object) -> str:
    return str(text).lower()


def _small_start(text: str) -> str:
    return text[0].lower() + text[1:]


def _without_small_word(rng: Random, text: str) -> str:
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if word.lower() in _SMALL_WORDS]
    if places:
        del words[rng.choice(places)]
    return " ".join(words)


def _slip(rng: Random, text: str) -> str:
    """One letter of a word of four or more swapped with the next, left out or typed twice."""
    # A slot is hidden, since a slip in its name would leave nothing to fill.
    words = list(re.finditer(r"[A-Za-z]{4,}", _SLOT.sub(lambda slot: "." * len(slot[0]), text)))
    if not words:
        return text
    word = rng.choice(words)
    # First letters are seldom missed.
    i = rng.randrange(word.start() + 1, word.end() - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return text[:i] + text[i + 1 :] if kind == 1 else text[:i] + text[i] + text[i:]
