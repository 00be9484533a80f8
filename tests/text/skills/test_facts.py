"""Facts are answered from their tables, whatever the wording."""

import re

import pytest

from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.facts import CAPITALS, CATEGORIES, OPPOSITES, SOUNDS, THING_COLORS, plural
from tests.text.skills.solving import drawn, unhurried

pytestmark = unhurried

ANSWERS = {
    "capital": {f"The capital of {a} is {b}." for a, b in CAPITALS.items()}
    | {f"{b} is in {a}." for a, b in CAPITALS.items()},
    "opposite": {f"The opposite of {x} is {y}." for a, b in OPPOSITES.items() for x, y in ((a, b), (b, a))},
    "animal sound": {f"A {a} says {b}." for a, b in SOUNDS.items()},
    "color": {f"It is {color}." for color in THING_COLORS.values()},
    "category": {f"It is {kind}." for kind in CATEGORIES},
}


def test_every_skill_of_facts_has_its_table() -> None:
    assert list(ANSWERS) == [skill.name for skill in SKILLS if skill.sort == "facts"]


@pytest.mark.parametrize("name", list(ANSWERS))
def test_facts_are_answered_from_their_tables(name: str) -> None:
    forms = {thing: {thing.split()[-1], plural(thing.split()[-1])} for thing in THING_COLORS}
    given = {exercise.turns[-1] for exercise in drawn(name, 9, 6000, new=None)}
    assert {answer for _, answer in given} == ANSWERS[name]
    for question, answer in given:
        words = set(re.findall(r"\w+", question))
        if name == "color":
            assert answer == next(f"It is {THING_COLORS[thing]}." for thing in forms if forms[thing] & words)
        if name == "category":
            assert answer == next(f"It is {kind}." for kind in CATEGORIES if set(CATEGORIES[kind]) & words)
