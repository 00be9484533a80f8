"""What a skill of the corpus is: a generator of exercises, and the split that keeps held-out ones from training."""

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

Sort = Literal["generalise", "facts", "talk"]


class Exercise(NamedTuple):
    """One thing to ask: turns of (question, answer), of which the last is the one that is scored.

    Attributes:
        keys: names of the instances that the exercise shows. The first is the exercise's own, the others are those that
            its answer gives away on the side (a product's last step is also a sum). An exercise is held out by its
            first key, and kept from training by any of them.
        turns: (question, answer) pairs, at least one.
        system: the system message that the exercise needs; none if absent.
    """

    keys: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    system: str | None = None


class Skill(NamedTuple):
    """One row of the table of skills.

    Attributes:
        sort: `generalise` holds out instances never seen, `facts` holds out (fact, phrasing) pairs, `talk` is
            conversation.
        weight: how often the skill is drawn, relative to the others.
        make: draws an exercise.
    """

    name: str
    sort: Sort
    weight: float
    make: Callable[[Random], Exercise]


HELD_OUT_FRACTION = 0.12


def is_held_out(key: str) -> bool:
    """Whether the instance is kept from training: true for `HELD_OUT_FRACTION` of all keys, by their hash.

    >>> is_held_out("add 17 58") == is_held_out("add 17 58")
    True
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_FRACTION * 2**64


def phrase(rng: Random, templates: Sequence[str], **slots: object) -> str:
    """One of the templates with its slots filled, now and then as a hurried person writes it.

    A quarter begin with a small letter and a quarter lack their final question mark or full stop.
    """
    return _filled(rng, rng.choice(templates), slots)


def fact_exercise(
    rng: Random, skill: str, fact: str, templates: Sequence[str], answer: str, **slots: object
) -> Exercise:
    """A question about a fact, keyed by the pair of fact and phrasing, so that a phrasing is held out, never a fact.

    No template may be another one without its final mark, or else a held-out phrasing could be met in training.
    """
    number = rng.randrange(len(templates))
    question = _filled(rng, templates[number], slots)
    return Exercise((f"{skill} {fact} {number}",), ((question, answer),))


def _filled(rng: Random, template: str, slots: dict[str, object]) -> str:
    if rng.random() < 0.25:
        template = template[0].lower() + template[1:]
    if rng.random() < 0.25 and template[-1] in ".?":
        template = template[:-1]
    return template.format(**slots)
