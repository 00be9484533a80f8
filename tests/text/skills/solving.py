"""What the tests of the skills share: exercises without hurry, and how their answers are checked."""

import itertools
import re
from collections.abc import Callable, Iterator
from random import Random

import pytest

from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.skill import Exercise

# The solvers read well-formed questions; what hurry does to them is tested with the wordings.
unhurried = pytest.mark.usefixtures("nobody_in_a_hurry")
both_wordings = pytest.mark.parametrize("new", [False, True], ids=["trained", "new"])


def drawn(name: str, seed: int, count: int, new: bool | None = False) -> Iterator[Exercise]:
    """Exercises of a skill; `new` None draws trained and new wordings in turn."""
    make, rng = next(skill.make for skill in SKILLS if skill.name == name), Random(seed)
    for draw in range(count):
        yield make(rng, draw % 2 == 0 if new is None else new)


def all_sentences(pattern: str) -> Iterator[str]:
    """Every sentence that a pattern of wordings stands for, slots still open."""
    parts = [part[1:-1].split("|") if part[:1] == "(" else [part] for part in re.split(r"(\([^()]*\))", pattern)]
    for choice in itertools.product(*parts):
        yield re.sub(r" ([?.,:])", r"\1", " ".join("".join(choice).split()))


def numbers(text: str) -> list[int]:
    """The numbers that a text holds."""
    return [int(number) for number in re.findall(r"\d+", text)]


def check_answers(name: str, solve: Callable[[str], str], new: bool) -> None:
    """Each final answer is what `solve` re-derives from the question; "?" stands for one that it cannot read, of
    which there are few."""
    unread, count = 0, 1500
    for exercise in drawn(name, 7, count, new):
        turns = exercise.turns
        # Later questions are about the text of the first turn.
        question = turns[0][0] if len(turns) == 1 else f"{turns[0][0]} . {turns[-1][0]}"
        # What stands behind the last "so", full stop aside.
        final = re.split(r"\bso ", turns[-1][1])[-1].removesuffix(".")
        solved = solve(question)
        assert solved in (final, "?"), (question, turns[-1][1])
        unread += solved == "?"
    assert unread <= count / 100


def check_equations(name: str) -> None:
    """Every equation on the way to an answer is true."""
    for exercise in drawn(name, 8, 1000):
        for left, sign, right in re.findall(r"(\d+(?:[-+*]\d+)+)([<=>])(\d+)", exercise.turns[-1][1]):
            parts = numbers(left)
            if sign != "=":
                assert (sign == "<") == (parts[0] < parts[1])
                assert parts[0] != parts[1]
                assert right == "0"
            elif "*" in left:
                assert parts[0] * parts[1] == int(right)
            elif "-" in left:
                assert parts[0] - sum(parts[1:]) == int(right)
            else:
                assert sum(parts) == int(right)
