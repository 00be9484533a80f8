"""Every answer of the corpus is right, re-derived from the question by means that the corpus does not use."""

import datetime
import re
from collections.abc import Callable
from random import Random

import pytest

from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.facts import CAPITALS, CATEGORIES, OPPOSITES, SOUNDS, THING_COLORS
from moe_hf.text.skills.skill import Skill


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _word(question: str) -> str:
    """The word that a question of letters is about."""
    quoted = re.findall(r'"(\w+)"', question)
    if quoted:
        return quoted[-1]
    words = re.findall(r"\w+", question)
    return [w for w in words if w not in ("have", "letters")][-1]


def _letter_at(question: str) -> str:
    word = re.search(r'"(\w+)"', question) or re.search(r"(\w+)\??$", question)
    assert word
    places = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1}
    place = next(place for name, place in places.items() if re.search(rf"\b{name}\b", question.split(word[1])[0]))
    return word[1][place]


def _calendar(question: str) -> str:
    steps, way = _numbers(question)[0], 1 if " after " in question else -1
    name = re.findall(r"[A-Z]\w+", question)[-1]
    for day in range(7):
        date = datetime.date(2024, 1, 1 + day)
        if f"{date:%A}" == name:
            return f"{date + datetime.timedelta(days=steps * way):%A}"
    months = [f"{datetime.date(2024, month, 1):%B}" for month in range(1, 13)]
    return months[(months.index(name) + steps * way) % 12]


def _comparison(question: str) -> str:
    a, b = sorted(_numbers(question))
    smaller = re.search("smaller|less|lower", question)
    return f"{a if smaller else b} is {re.search('larger|bigger|greater|smaller|less|lower', question)[0]}"


def _word_problem(question: str) -> str:
    a, b = _numbers(question)
    result = a + b if re.search(r"\b(gets|buys|puts in)\b", question) else a - b
    return f"{result} {re.search(r'[0-9] ([a-z]+)', question)[1]}"


def _possession(question: str) -> str:
    has = re.findall(r"(\w+) has a (\w+) (\w+)\.", question)
    asked = question.rsplit(". ", 1)[1]
    for person, color, thing in has:
        if re.search(rf"\b{thing}\b", asked):
            return f"{person} has the {thing}" if asked.lower().startswith("who") else f"The {thing} is {color}"
        if re.search(rf"\b{person}\b", asked):
            return f"{person} has a {color} {thing}"
    raise AssertionError(question)


def _by_operator(question: str) -> str:
    a, b = _numbers(question)
    if re.search(r"\+|plus|[Aa]dd", question):
        return str(a + b)
    if re.search(r"\*|times|[Mm]ultiply| x ", question):
        return str(a * b)
    return str(abs(a - b))


# The text of the question to the answer after its last "so", full stop aside.
SOLVERS: dict[str, Callable[[str], str]] = {
    "addition": _by_operator,
    "subtraction": _by_operator,
    "multiplication": _by_operator,
    "comparison": _comparison,
    "parity": lambda q: "it is " + ("odd" if _numbers(q)[0] & 1 else "even"),
    "word problem": _word_problem,
    "counting": lambda q: str(q.split(": ")[1].count(",") + 1),
    "sorting": lambda q: ", ".join(sorted(re.findall(r"\d", q))),
    "calendar": _calendar,
    "repetition": lambda q: re.split(r": |[Ss]ay ", q)[-1].strip('".'),
    "spelling": lambda q: "-".join(re.search(r'"(\w+)"', q)[1] if '"' in q else re.findall(r"\w+", q)[-1]),
    "letter": _letter_at,
    "word length": lambda q: str(len(_word(q))),
    "possession": _possession,
}


def _skills(sort: str) -> list[Skill]:
    return [skill for skill in SKILLS if skill.sort == sort]


def test_every_skill_that_generalises_has_a_solver() -> None:
    assert [skill.name for skill in _skills("generalise")] == list(SOLVERS)


@pytest.mark.parametrize("skill", _skills("generalise"), ids=lambda skill: skill.name)
def test_the_final_answer_is_what_the_question_asks_for(skill: Skill) -> None:
    rng = Random(7)
    for _ in range(1500):
        turns = skill.make(rng).turns
        # Later questions are about the text of the first turn.
        answer = turns[-1][1]
        question = turns[0][0] if len(turns) == 1 else f"{turns[0][0]} . {turns[-1][0]}"
        final = re.split(r"\bso ", answer)[-1].removesuffix(".")
        assert final == SOLVERS[skill.name](question), (question, answer)


@pytest.mark.parametrize("skill", _skills("generalise"), ids=lambda skill: skill.name)
def test_every_equation_on_the_way_is_true(skill: Skill) -> None:
    rng = Random(8)
    for _ in range(1000):
        for left, sign, right in re.findall(r"(\d+(?:[-+*]\d+)+)([<=>])(\d+)", skill.make(rng).turns[-1][1]):
            numbers = _numbers(left)
            if sign != "=":
                assert (sign == "<") == (numbers[0] < numbers[1])
                assert numbers[0] != numbers[1]
                assert right == "0"
            elif "*" in left:
                assert numbers[0] * numbers[1] == int(right)
            elif "-" in left:
                assert numbers[0] - sum(numbers[1:]) == int(right)
            else:
                assert sum(numbers) == int(right)


@pytest.mark.parametrize("name", ["addition", "subtraction"])
def test_the_steps_of_a_sum_or_difference_spell_its_result(name: str) -> None:
    make = next(skill.make for skill in SKILLS if skill.name == name)
    rng = Random(11)
    for _ in range(1000):
        *steps, final = re.split(", ", make(rng).turns[0][1].removesuffix("."))
        values = [int(step.rpartition("=")[2]) for step in steps]
        # Each step leaves a digit and carries the rest; the last one stands whole, its leading zeros aside.
        assert int("".join([str(values[-1]), *(str(value % 10) for value in values[-2::-1])])) == _numbers(final)[0]


def test_the_steps_of_a_product_spell_its_result() -> None:
    make = next(skill.make for skill in SKILLS if skill.name == "multiplication")
    rng = Random(12)
    for _ in range(1000):
        *steps, final = re.split(", ", make(rng).turns[0][1].removesuffix("."))
        low, high = int(steps[0].rpartition("=")[2]), int(steps[-1].rpartition("=")[2])
        assert _numbers(final)[0] == (low if len(steps) == 1 else 10 * high + low % 10)


def test_facts_are_answered_from_their_tables() -> None:
    tables = {
        "capital": {f"The capital of {a} is {b}." for a, b in CAPITALS.items()}
        | {f"{b} is in {a}." for a, b in CAPITALS.items()},
        "opposite": {f"The opposite of {x} is {y}." for a, b in OPPOSITES.items() for x, y in ((a, b), (b, a))},
        "animal sound": {f"A {a} says {b}." for a, b in SOUNDS.items()},
        "color": {f"It is {color}." for color in THING_COLORS.values()},
        "category": {f"It is {kind}." for kind in CATEGORIES},
    }
    assert list(tables) == [skill.name for skill in _skills("facts")]
    for skill in _skills("facts"):
        rng = Random(9)
        given = {skill.make(rng).turns[-1] for _ in range(4000)}
        assert {answer for _, answer in given} == tables[skill.name]
        for question, answer in given:
            # Longest names first: "chocolate" holds no other name, but "a pig" might.
            of_thing = [color for thing, color in THING_COLORS.items() if f" {thing}" in question]
            of_word = [kind for kind, words in CATEGORIES.items() if set(words) & set(re.findall(r"\w+", question))]
            if skill.name == "color":
                assert answer == f"It is {of_thing[0]}."
            if skill.name == "category":
                assert answer == f"It is {of_word[0]}."


def test_what_the_user_said_is_what_is_remembered() -> None:
    make = {skill.name: skill.make for skill in SKILLS}
    rng = Random(10)
    for _ in range(500):
        turns = make["remembering"](rng).turns
        word = re.sub(r".*\b(?:a|like|You live in|name is|You like) (\w+)\.$", r"\1", turns[-1][1])
        assert re.search(rf"\b{word}\b", turns[0][0]), turns
        exercise = make["persona"](rng)
        assert exercise.system is not None
        name, city = re.fullmatch(r"Your name is (\w+)\. You live in (\w+)\.", exercise.system).groups()
        question, answer = exercise.turns[0]
        assert answer == (f"I live in {city}." if question.lower().startswith("where") else f"My name is {name}.")
        question, answer = make["not knowing"](rng).turns[0]
        assert answer.startswith("I don't know ")
        assert (set(re.findall(r"\w+", answer)) & set(re.findall(r"\w+", question))) - {"is", "of", "what"}
