"""What a skill of the corpus is: a generator of exercises, and the split that keeps held-out ones from training."""

import hashlib
from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple

from moe_hf.text.skills.wordings import Wordings, core, expanded, hurried

Sort = Literal["generalise", "facts", "talk"]


class Exercise(NamedTuple):
    """One thing to ask: turns of (question, answer), of which the last is the one that is scored.

    Attributes:
        keys: names of the instances that the exercise shows. The first is the exercise's own, the others are those that
            its answer gives away on the side (a product's last step is also a sum). An exercise is held out by its
            first key, and kept from training by any of them. None where the wording alone is what training never sees.
        turns: (question, answer) pairs, at least one.
        system: the system message that the exercise needs; none if absent.
        alone: whether it would contradict other exercises of the same conversation.
    """

    keys: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    system: str | None = None
    alone: bool = False


class Skill(NamedTuple):
    """One row of the table of skills.

    Attributes:
        sort: `generalise` holds out instances never seen, `facts` holds out (fact, phrasing) pairs, `talk` is
            conversation.
        weight: how often the skill is drawn, relative to the others.
        make: draws an exercise; asked in a wording that training never draws if its second argument is true.
    """

    name: str
    sort: Sort
    weight: float
    make: Callable[[Random, bool], Exercise]


HELD_OUT_FRACTION = 0.12
# Slips teach slips and cost care in all else: fewer in training than people make.
_HURRIED, _HURRIED_NEW = 0.25, 0.5


def is_held_out(key: str) -> bool:
    """Whether the instance is kept from training: true for `HELD_OUT_FRACTION` of all keys, by their hash.

    >>> is_held_out("add 17 58") == is_held_out("add 17 58")
    True
    """
    # Python's own hash differs from process to process.
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_FRACTION * 2**64


def phrase(rng: Random, wordings: Wordings, new: bool = False, **slots: object) -> str:
    """One of the trained wordings (a new one if `new`) with its slots filled, often as a hurried person writes it."""
    return hurried(rng, expanded(rng, wordings, new), slots, wordings.room, _HURRIED_NEW if new else _HURRIED)


def fact_exercise(
    rng: Random, skill: str, fact: str, wordings: Wordings, new: bool, answer: str, **slots: object
) -> Exercise:
    """A question about a fact, keyed by the pair of fact and phrasing, so that a phrasing is held out, never a fact."""
    template = expanded(rng, wordings, new)
    question = hurried(rng, template, slots, wordings.room, _HURRIED_NEW if new else _HURRIED)
    # By the sentence's core: hurry drops marks and small words, and must not bring a held-out one back.
    return Exercise(() if new else (f"{skill} {fact} {core(template)}",), ((question, answer),))
