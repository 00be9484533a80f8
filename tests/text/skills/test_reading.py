"""Questions about a text are answered from what the text says of each person and thing."""

import re

from moe_hf.text.skills.words import COLORS
from tests.text.skills.solving import both_wordings, check_answers, drawn, unhurried

pytestmark = unhurried


def _possession(question: str) -> str:
    texts = list(re.finditer(rf"(\w+) has a ({'|'.join(COLORS)}) (\w+)", question))
    asked = question.rpartition(" . ")[2] if " . " in question else question[texts[-1].end() :]
    for person, color, thing in (text.groups() for text in texts):
        if re.search(rf"\b{thing}\b", asked):
            return f"The {thing} is {color}" if re.search("colou?r", asked) else f"{person} has the {thing}"
        if re.search(rf"\b{person}\b", asked):
            return f"{person} has a {color} {thing}"
    raise AssertionError(question)


SOLVERS = {"possession": _possession}


@both_wordings
def test_the_final_answer_is_what_the_text_says(new: bool) -> None:
    check_answers("possession", _possession, new)


def test_people_and_things_of_a_text_are_all_different() -> None:
    for exercise in drawn("possession", 15, 300):
        owners, things = zip(
            *re.findall(rf"(\w+) has a (?:{'|'.join(COLORS)}) (\w+)", exercise.turns[0][0]), strict=True
        )
        assert len(set(owners)) == len(owners)
        assert len(set(things)) == len(things)
