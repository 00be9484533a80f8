"""Skills of letters: spelling a word, the letter at a place, the length.

Each answer goes through the word letter by letter, which is what a model that reads whole words can't skip.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.wordings import Wordings
from moe_hf.text.skills.words import spelling_word

_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_SHORT_ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")

_SPELL = Wordings(
    trained=(
        "(Spell|Can you spell|Could you spell|I want to spell|Please spell) (|the word ){w}.",
        "How (do you|do I|would you|can I|to) spell (|the word ){w}?",
        "How is (|the word ){w} (spelled|written|spelt)?",
        "(What is|What's|Tell me|Give me) the spelling of (|the word ){w}.",
        "(Spell|Spell out|Write out) {w} (letter by letter|for me|).",
        "(Tell me|Give me|Name|Say) the letters of (|the word ){w}.",
        "{w}(,|:) (how is it spelled|how do you spell it|spell it|how do I spell that)?",
    ),
    new=(
        "(Do you know|Tell me|Can you tell me) how (to spell|you spell) (|the word ){w}?",
        "Take the word {w} and spell it.",
        "Do you know how {w} is (spelled|written)?",
        "The word {w}: how would you spell it?",
        "Say {w} letter by letter.",
        "The spelling of {w}?",
    ),
)
_LETTER = Wordings(
    trained=(
        "(What is|What's) the {p} letter (of|in) (|the word ){w}?",
        "(Which|What) letter (comes|is) {p} in (|the word ){w}?",
        "(Tell me|Give me|Name|Find) the {p} letter of (|the word ){w}.",
        "{w}: (what is the|the) {p} letter?",
        "(Which|What) is the {p} letter of {w}?",
        "In (|the word ){w}, (which|what) letter (comes|is) {p}?",
        "I (need|want) the {p} letter of {w}.",
    ),
    new=(
        "In the word {w}, (what is|what's) the {p} letter?",
        "Do you know the {p} letter (of|in) {w}?",
        "The {p} letter of (|the word ){w}(| is)?",
        "Can you (tell me|find) which letter comes {p} in {w}?",
        "Take the word {w}. What is its {p} letter?",
    ),
)
_FIRST = Wordings(
    trained=("(Which|What) letter does (|the word ){w} (start|begin) with?", "{w} (starts|begins) with which letter?"),
    new=("With (which|what) letter does {w} (start|begin)?", "Do you know what letter {w} (starts|begins) with?"),
)
_LAST = Wordings(
    trained=("(Which|What) letter does (|the word ){w} end with?", "{w} ends with which letter?"),
    new=("With (which|what) letter does {w} end?", "Do you know what letter {w} ends with?"),
)
_LENGTH = Wordings(
    trained=(
        "How many letters (are|are there|do you see) in (|the word ){w}?",
        "How many letters (does|has) (|the word ){w} (have|have in it)?",
        "How long is (|the word ){w}?",
        "(Count|Can you count|Please count) the letters (in|of) (|the word ){w}.",
        "(What is|What's|Tell me) the (length|number of letters) of (|the word ){w}.",
        "{w}: how many letters?",
        "(Tell me|Do you know|I want to know) how many letters (|the word ){w} has.",
        "In (|the word ){w}, how many letters do you count?",
    ),
    new=(
        "In (|the word ){w}, how many letters are there?",
        "{w} has how many letters?",
        "Take the word {w} and count its letters.",
        "Can you tell me how many letters are in {w}?",
        "Do you know (how long {w} is|the length of {w})?",
        "The number of letters in {w}?",
    ),
)


def _quoted(rng: Random, word: str) -> str:
    return f'"{word}"' if rng.random() < 0.25 else word


def spelling(rng: Random, new: bool = False) -> Exercise:
    """A word spelled out."""
    word = spelling_word(rng)
    return Exercise((f"spell {word}",), ((phrase(rng, _SPELL, new, w=_quoted(rng, word)), "-".join(word) + "."),))


def letter_at(rng: Random, new: bool = False) -> Exercise:
    """The letter at a place of a word, counted from the front, or its last letter."""
    word = spelling_word(rng)
    place = rng.randrange(min(len(word), len(_ORDINALS)) + 1)
    ordinals = _ORDINALS if rng.random() < 0.85 else _SHORT_ORDINALS
    ordinal = ordinals[place - 1] if place else "last"
    wordings = _LETTER
    if place < 2 and rng.random() < 0.25:
        wordings = _FIRST if place else _LAST
    letters = _numbered(word[:place] if place else word)
    question = phrase(rng, wordings, new, p=ordinal, w=_quoted(rng, word))
    return Exercise((f"letter {word} {place}",), ((question, f"{letters}, so {word[place - 1]}."),))


def word_length(rng: Random, new: bool = False) -> Exercise:
    """How many letters a word has."""
    word = spelling_word(rng)
    question = phrase(rng, _LENGTH, new, w=_quoted(rng, word))
    return Exercise((f"length {word}",), ((question, f"{_numbered(word)}, so {len(word)}."),))


def _numbered(word: str) -> str:
    return "-".join(f"{letter}{i}" for i, letter in enumerate(word, 1))
