"""Arithmetic is right: every result, every step on the way, and how the steps spell the result."""

import re
from collections.abc import Callable

import pytest

from moe_hf.text.skills.arithmetic import comparison_steps, difference_steps, product_steps, sum_steps
from moe_hf.text.skills.words import THINGS
from tests.text.skills.solving import both_wordings, check_answers, check_equations, drawn, numbers, unhurried

pytestmark = unhurried


def _comparison(question: str) -> str:
    a, b = sorted(numbers(question))
    return f"{a} is smaller" if re.search("small|less|low|least", question) else f"{b} is larger"


def _word_problem(question: str) -> str:
    a, b = numbers(question)
    plurals = {f"{thing}es" if thing in ("box", "brush") else f"{thing}s" for thing in THINGS}
    thing = next(word for word in re.findall(r"\w+", question) if word in plurals)
    return f"{a + b if ' more' in question else abs(a - b)} {thing}"


def _by_operator(question: str) -> str:
    a, b = numbers(question)
    if re.search(r"minus|-|[Ss]ubtract|[Tt]ake|difference|less", question):
        return str(abs(a - b))
    return str(a * b if re.search(r"\*|times|[Mm]ultipl|product|\dx| x ", question) else a + b)


SOLVERS: dict[str, Callable[[str], str]] = {
    "addition": _by_operator,
    "subtraction": _by_operator,
    "multiplication": _by_operator,
    "comparison": _comparison,
    "parity": lambda question: "it is " + ("odd" if numbers(question)[0] & 1 else "even"),
    "word problem": _word_problem,
}


@both_wordings
@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_final_answer_is_what_the_question_asks_for(name: str, new: bool) -> None:
    check_answers(name, SOLVERS[name], new)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_equation_on_the_way_is_true(name: str) -> None:
    check_equations(name)


@pytest.mark.parametrize("name", ["addition", "subtraction"])
def test_the_steps_of_a_sum_or_difference_spell_its_result(name: str) -> None:
    for exercise in drawn(name, 11, 1000):
        *steps, final = re.split(", ", exercise.turns[0][1].removesuffix("."))
        values = [int(step.rpartition("=")[2]) for step in steps]
        # Each step leaves a digit and carries the rest; the last one stands whole, its leading zeros aside.
        assert int("".join([str(values[-1]), *(str(value % 10) for value in values[-2::-1])])) == numbers(final)[0]


def test_the_steps_of_a_product_spell_its_result() -> None:
    for exercise in drawn("multiplication", 12, 1000):
        *steps, final = re.split(", ", exercise.turns[0][1].removesuffix("."))
        low, high = int(steps[0].rpartition("=")[2]), int(steps[-1].rpartition("=")[2])
        assert numbers(final)[0] == (low if len(steps) == 1 else 10 * high + low % 10)


def test_steps_are_written_out_digit_by_digit() -> None:
    assert sum_steps(12, 9) == "2+9=11, 1+1=2, so 21"
    assert difference_steps(40, 13) == "10-3=7, 3-1=2, so 27"
    assert product_steps(12, 7) == "2*7=14, 1*7=7, 7+1=8, so 84"
    assert comparison_steps(45, 54) == "4<5"
