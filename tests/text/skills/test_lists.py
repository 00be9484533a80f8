"""Lists are counted, sorted, walked along and repeated as they are asked for."""

import datetime
import re
from collections.abc import Callable

import pytest

from moe_hf.text.skills.words import ANIMALS, COLORS, THINGS
from tests.text.skills.solving import both_wordings, check_answers, numbers, unhurried

pytestmark = unhurried


def _calendar(question: str) -> str:
    steps, way = numbers(question)[0], -1 if re.search(r"\b(before|ago|back)\b", question) else 1
    days = [f"{datetime.date(2024, 1, day):%A}" for day in range(1, 8)]
    months = [f"{datetime.date(2024, month, 1):%B}" for month in range(1, 13)]
    names = next(names for names in (days, months) if set(names) & set(re.findall(r"\w+", question)))
    start = next(name for name in re.findall(r"\w+", question) if name in names)
    return names[(names.index(start) + steps * way) % len(names)]


def _repetition(question: str) -> str:
    asking = r"([Pp]lease|[Cc]an you|[Cc]ould you|[Yy]ou must|I want you to|Now)? ?"
    verb = r"([Ss]ay|[Rr]epeat|[Ee]cho|[Cc]opy|[Ww]rite|Tell me)"
    what = r"( (this|it|the words|these words( again)?|after me|again)\b)*:? "
    return re.sub(asking + verb + what, "", question, count=1)


def _counted(question: str) -> str:
    return str(sum(word in {*THINGS, *ANIMALS, *COLORS} for word in re.findall(r"\w+", question)))


SOLVERS: dict[str, Callable[[str], str]] = {
    "counting": _counted,
    "sorting": lambda question: ", ".join(sorted(re.findall(r"\d", question))),
    "calendar": _calendar,
    "repetition": _repetition,
}


@both_wordings
@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_final_answer_is_what_the_question_asks_for(name: str, new: bool) -> None:
    check_answers(name, SOLVERS[name], new)
