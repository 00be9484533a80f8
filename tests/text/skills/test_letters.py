"""Questions about the letters of a word are answered from the word itself."""

import re
from collections.abc import Callable

import pytest

from tests.text.skills.solving import both_wordings, check_answers, unhurried

pytestmark = unhurried

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


def _readable(solve: Callable[[str], str]) -> Callable[[str], str]:
    return lambda question: _UNREADABLE if _word(question) == _UNREADABLE else solve(question)


SOLVERS: dict[str, Callable[[str], str]] = {
    "spelling": _readable(lambda question: "-".join(_word(question))),
    "letter": _readable(_letter_at),
    "word length": _readable(lambda question: str(len(_word(question)))),
}


@both_wordings
@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_final_answer_is_what_the_question_asks_for(name: str, new: bool) -> None:
    check_answers(name, SOLVERS[name], new)
