"""Every answer of the corpus is right, re-derived from the question by means that the corpus does not use."""

import datetime
import re
from collections.abc import Callable
from random import Random

import pytest

from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.facts import CAPITALS, CATEGORIES, OPPOSITES, SOUNDS, THING_COLORS, plural
from moe_hf.text.skills.skill import Skill
from moe_hf.text.skills.small_talk import MODEL_NAME
from moe_hf.text.skills.unknown import NOT_TOLD, UNKNOWN
from moe_hf.text.skills.words import ANIMALS, COLORS, THINGS


@pytest.fixture(autouse=True)
def _nobody_in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    # The solvers read well-formed questions; what hurry does to them is tested with the wordings.
    monkeypatch.setattr(
        "moe_hf.text.skills.skill.hurried", lambda rng, template, slots, *rest: template.format(**slots)
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


# What the patterns about letters say beside the word that they are about.
_OF_LETTERS = set(
    "and are begin begins by can comes could count do does end ends find for give has have how i in is it its know "
    "length "
    "letter letters long many me name need number of out please s say see spell spelled spelling spelt start starts "
    "take "
    "tell that the there to want what which with word would write written you first second third fourth fifth last st "
    "nd rd th"
    .split()
)  # fmt: skip


_UNREADABLE = "?"


def _word(question: str) -> str:
    """The word that a question of letters is about."""
    quoted = re.findall(r'"(\w+)"', question)
    others = [word for word in re.findall(r"[a-z]+", question.lower()) if word not in _OF_LETTERS]
    # "Spell the." can't be read without its pattern.
    return (quoted or others or [_UNREADABLE])[0]


def _letter_at(question: str) -> str:
    places = {"first|1st|starts?|begins?": 0, "second|2nd": 1, "third|3rd": 2, "fourth|4th": 3, "fifth|5th": 4}
    places["last|ends?"] = -1
    word = _word(question)
    around = question.replace(word, "")
    return word[next(place for names, place in places.items() if re.search(rf"\b({names})\b", around))]


def _calendar(question: str) -> str:
    steps, way = _numbers(question)[0], -1 if re.search(r"\b(before|ago|back)\b", question) else 1
    days = [f"{datetime.date(2024, 1, day):%A}" for day in range(1, 8)]
    months = [f"{datetime.date(2024, month, 1):%B}" for month in range(1, 13)]
    names = next(names for names in (days, months) if set(names) & set(re.findall(r"\w+", question)))
    start = next(name for name in re.findall(r"\w+", question) if name in names)
    return names[(names.index(start) + steps * way) % len(names)]


def _comparison(question: str) -> str:
    a, b = sorted(_numbers(question))
    return f"{a} is smaller" if re.search("small|less|low|least", question) else f"{b} is larger"


def _word_problem(question: str) -> str:
    a, b = _numbers(question)
    plurals = {f"{thing}es" if thing in ("box", "brush") else f"{thing}s" for thing in THINGS}
    thing = next(word for word in re.findall(r"\w+", question) if word in plurals)
    return f"{a + b if ' more' in question else abs(a - b)} {thing}"


def _possession(question: str) -> str:
    texts = list(re.finditer(rf"(\w+) has a ({'|'.join(COLORS)}) (\w+)", question))
    asked = question.rpartition(" . ")[2] if " . " in question else question[texts[-1].end() :]
    for person, color, thing in (text.groups() for text in texts):
        if re.search(rf"\b{thing}\b", asked):
            return f"The {thing} is {color}" if re.search("colou?r", asked) else f"{person} has the {thing}"
        if re.search(rf"\b{person}\b", asked):
            return f"{person} has a {color} {thing}"
    raise AssertionError(question)


def _by_operator(question: str) -> str:
    a, b = _numbers(question)
    if re.search(r"minus|-|[Ss]ubtract|[Tt]ake|difference|less", question):
        return str(abs(a - b))
    return str(a * b if re.search(r"\*|times|[Mm]ultipl|product|\dx| x ", question) else a + b)


def _repetition(question: str) -> str:
    asking = r"([Pp]lease|[Cc]an you|[Cc]ould you|[Yy]ou must|I want you to|Now)? ?"
    verb = r"([Ss]ay|[Rr]epeat|[Ee]cho|[Cc]opy|[Ww]rite|Tell me)"
    what = r"( (this|it|the words|these words( again)?|after me|again)\b)*:? "
    return re.sub(asking + verb + what, "", question, count=1)


# The text of the question to the answer after its last "so", full stop aside.
SOLVERS: dict[str, Callable[[str], str]] = {
    "addition": _by_operator,
    "subtraction": _by_operator,
    "multiplication": _by_operator,
    "comparison": _comparison,
    "parity": lambda q: "it is " + ("odd" if _numbers(q)[0] & 1 else "even"),
    "word problem": _word_problem,
    "counting": lambda q: str(sum(word in {*THINGS, *ANIMALS, *COLORS} for word in re.findall(r"\w+", q))),
    "sorting": lambda q: ", ".join(sorted(re.findall(r"\d", q))),
    "calendar": _calendar,
    "repetition": _repetition,
    "spelling": lambda q: "-".join(_word(q)),
    "letter": _letter_at,
    "word length": lambda q: str(len(_word(q))),
    "possession": _possession,
}


def _skills(sort: str) -> list[Skill]:
    return [skill for skill in SKILLS if skill.sort == sort]


def test_every_skill_that_generalises_has_a_solver() -> None:
    assert [skill.name for skill in _skills("generalise")] == list(SOLVERS)


@pytest.mark.parametrize("new", [False, True], ids=["trained", "new"])
@pytest.mark.parametrize("skill", _skills("generalise"), ids=lambda skill: skill.name)
def test_the_final_answer_is_what_the_question_asks_for(skill: Skill, new: bool) -> None:
    rng = Random(7)
    for _ in range(1500):
        turns = skill.make(rng, new).turns
        # Later questions are about the text of the first turn.
        answer = turns[-1][1]
        question = turns[0][0] if len(turns) == 1 else f"{turns[0][0]} . {turns[-1][0]}"
        final = re.split(r"\bso ", answer)[-1].removesuffix(".")
        if skill.name in ("spelling", "letter", "word length") and _word(question) == _UNREADABLE:
            continue
        assert final == SOLVERS[skill.name](question), (question, answer)


@pytest.mark.parametrize("skill", _skills("generalise"), ids=lambda skill: skill.name)
def test_every_equation_on_the_way_is_true(skill: Skill) -> None:
    rng = Random(8)
    for _ in range(1000):
        for left, sign, right in re.findall(r"(\d+(?:[-+*]\d+)+)([<=>])(\d+)", skill.make(rng, False).turns[-1][1]):
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
        *steps, final = re.split(", ", make(rng, False).turns[0][1].removesuffix("."))
        values = [int(step.rpartition("=")[2]) for step in steps]
        # Each step leaves a digit and carries the rest; the last one stands whole, its leading zeros aside.
        assert int("".join([str(values[-1]), *(str(value % 10) for value in values[-2::-1])])) == _numbers(final)[0]


def test_the_steps_of_a_product_spell_its_result() -> None:
    make = next(skill.make for skill in SKILLS if skill.name == "multiplication")
    rng = Random(12)
    for _ in range(1000):
        *steps, final = re.split(", ", make(rng, False).turns[0][1].removesuffix("."))
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
    forms = {thing: {thing.split()[-1], plural(thing.split()[-1])} for thing in THING_COLORS}
    for skill in _skills("facts"):
        rng = Random(9)
        given = {skill.make(rng, draw % 2 == 0).turns[-1] for draw in range(6000)}
        assert {answer for _, answer in given} == tables[skill.name]
        for question, answer in given:
            words = set(re.findall(r"\w+", question))
            if skill.name == "color":
                assert answer == next(f"It is {THING_COLORS[thing]}." for thing in forms if forms[thing] & words)
            if skill.name == "category":
                assert answer == next(f"It is {kind}." for kind in CATEGORIES if set(CATEGORIES[kind]) & words)


def test_what_the_user_said_is_what_is_remembered_and_is_not_the_model_s_name() -> None:
    make = {skill.name: skill.make for skill in SKILLS}
    rng = Random(10)
    asked_for_the_model = 0
    for draw in range(600):
        turns = make["remembering"](rng, draw % 2 == 0).turns
        named = re.fullmatch(r"Nice to meet you, (\w+)!", turns[0][1])
        if turns[-1][1] == MODEL_NAME:
            asked_for_the_model += 1
            assert named
            assert re.search(r"\byour?\b|people", turns[-1][0], re.I)
        else:
            word = re.sub(r".*\b(?:a|like|You live in|name is|You like) (\w+)\.$", r"\1", turns[-1][1])
            assert re.search(rf"\b{word}\b", turns[0][0]), turns
            assert re.search(r"\b(I|my)\b", turns[-1][0], re.I), turns
    assert asked_for_the_model > 20


def test_a_system_message_names_the_model_and_the_user_names_themself() -> None:
    make = next(skill.make for skill in SKILLS if skill.name == "persona")
    rng = Random(13)
    for draw in range(300):
        exercise = make(rng, draw % 2 == 0)
        assert exercise.system is not None
        name, city = re.fullmatch(r"(?:Your name is|You are) (\w+)\b.* (\w+)\.", exercise.system).groups()
        question, answer = exercise.turns[-1]
        assert answer == (
            f"I live in {city}." if re.search("where|home|city", question, re.I) else f"My name is {name}."
        )


def test_what_no_skill_teaches_is_answered_with_not_knowing() -> None:
    make = next(skill.make for skill in SKILLS if skill.name == "not knowing")
    rng = Random(14)
    exercises = [make(rng, draw % 2 == 0) for draw in range(3000)]
    assert {exercise.turns[0][1] for exercise in exercises} == {UNKNOWN, NOT_TOLD}
    known = {
        *CAPITALS,
        *OPPOSITES,
        *OPPOSITES.values(),
        *SOUNDS,
        *(word for words in CATEGORIES.values() for word in words),
    }
    for exercise in exercises:
        if exercise.turns[0][1] == UNKNOWN:
            assert re.sub(r"^unknown (\d )?", "", exercise.keys[0]) not in known - {"car", "bus", "dog", "cat", "horse"}
        else:
            # Other exercises of a conversation may have told it.
            assert exercise.alone
