"""New wordings are none of the trained ones, and hurry changes how a question is typed but not what is asked."""

from collections.abc import Iterator
from random import Random

import pytest

from moe_hf.text.skills import arithmetic, facts, letters, lists, reading, small_talk, talk, unknown
from moe_hf.text.skills.wordings import Wordings, core, expanded, hurried
from tests.text.skills.solving import all_sentences


def _named(value: object, name: str) -> Iterator[tuple[str, Wordings]]:
    if isinstance(value, Wordings):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, f"{name} {key}")
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _named(part, f"{name} {i}")


TABLES = dict(
    pair
    for module in (arithmetic, facts, letters, lists, reading, small_talk, talk, unknown)
    for name, value in vars(module).items()
    for pair in _named(value, f"{module.__name__.rpartition('.')[2]} {name.strip('_').lower()}")
)


@pytest.mark.parametrize("wordings", TABLES.values(), ids=TABLES)
def test_no_new_wording_is_a_trained_one_in_other_dress(wordings: Wordings) -> None:
    trained, new = (
        {core(sentence) for pattern in patterns for sentence in all_sentences(pattern)}
        for patterns in (wordings.trained, wordings.new)
    )
    assert trained & new == set()
    assert len(trained) >= 4
    assert len(new) >= 2


def test_a_pattern_stands_for_all_of_its_choices() -> None:
    wordings = Wordings(("(What is|Tell me) {a}(| now)?",), ("Now {a}",))
    drawn = {expanded(Random(seed), wordings) for seed in range(60)}
    assert drawn == set(all_sentences(wordings.trained[0]))
    assert drawn == {"What is {a}?", "What is {a} now?", "Tell me {a}?", "Tell me {a} now?"}


def test_hurry_keeps_what_is_asked_and_leaves_many_questions_as_they_are() -> None:
    template, rng = "What's the sum of {a} and the number {b}?", Random(0)
    typed = [hurried(rng, template, {"a": 12, "b": "Xy"}) for _ in range(3000)]
    assert all("12" in text and "Xy" in text for text in typed)
    assert 0.35 < sum(text == "What's the sum of 12 and the number Xy?" for text in typed) / len(typed) < 0.6
    for words in ("Whats the sum", "what's the sum", "please", "thanks", "What's sum of"):
        assert any(words in text for text in typed), words
    assert len(set(typed)) > 300


def test_words_of_politeness_stay_where_they_are_no_part_of_the_question() -> None:
    def typed(room: str) -> set[str]:
        return {hurried(Random(seed), "Say {t}", {"t": "cat"}, room).lower() for seed in range(800)}

    assert any(not text.endswith("cat") for text in typed("around"))
    assert all(text.endswith("cat") for text in typed("before"))
    assert any(text.endswith("say cat") and text != "say cat" for text in typed("before"))
    assert all(len(text.split()) == 2 for text in typed("none"))
