"""Skills of letters: spelling a word, the letter at a place, the length.

Each answer goes through the word letter by letter, which is what a model that reads whole words can't skip.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.words import spelling_word

_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def spelling(rng: Random) -> Exercise:
    """A word spelled out."""
    word = spelling_word(rng)
    templates = ("Spell {w}.", 'Spell "{w}".', "Spell the word {w}.", "How do you spell {w}?", 'How is "{w}" spelled?')
    return Exercise((f"spell {word}",), ((phrase(rng, templates, w=word), "-".join(word) + "."),))


def letter_at(rng: Random) -> Exercise:
    """The letter at a place of a word, counted from the front, or its last letter."""
    word = spelling_word(rng)
    place = rng.randrange(min(len(word), len(_ORDINALS)) + 1)
    templates = (
        "What is the {p} letter of {w}?",
        'What is the {p} letter of "{w}"?',
        "What is the {p} letter in the word {w}?",
        'Which letter comes {p} in "{w}"?',
    )
    ordinal = _ORDINALS[place - 1] if place else "last"
    letters = _numbered(word[:place] if place else word)
    answer = f"{letters}, so {word[place - 1]}."
    return Exercise((f"letter {word} {place}",), ((phrase(rng, templates, p=ordinal, w=word), answer),))


def word_length(rng: Random) -> Exercise:
    """How many letters a word has."""
    word = spelling_word(rng)
    templates = (
        "How many letters are in {w}?",
        'How many letters are in "{w}"?',
        "How many letters does {w} have?",
        "How long is the word {w}?",
    )
    return Exercise((f"length {word}",), ((phrase(rng, templates, w=word), f"{_numbered(word)}, so {len(word)}."),))


def _numbered(word: str) -> str:
    return "-".join(f"{letter}{i}" for i, letter in enumerate(word, 1))
