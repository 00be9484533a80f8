"""What was said earlier in a conversation is what later answers say."""

import re

from moe_hf.text.skills.small_talk import MODEL_NAME
from tests.text.skills.solving import drawn, unhurried

pytestmark = unhurried


def test_what_the_user_said_is_what_is_remembered_and_is_not_the_model_s_name() -> None:
    asked_for_the_model = 0
    for exercise in drawn("remembering", 10, 600, new=None):
        turns = exercise.turns
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
    for exercise in drawn("persona", 13, 300, new=None):
        assert exercise.system is not None
        name, city = re.fullmatch(r"(?:Your name is|You are) (\w+)\b.* (\w+)\.", exercise.system).groups()
        question, answer = exercise.turns[-1]
        assert answer == (
            f"I live in {city}." if re.search("where|home|city", question, re.I) else f"My name is {name}."
        )


def test_a_story_is_about_what_it_was_asked_about_and_always_the_same() -> None:
    told: dict[tuple[str, str], str] = {}
    for exercise in drawn("story", 16, 400, new=None):
        question, answer = exercise.turns[-1]
        hero, place = re.fullmatch(r"story (\w+) (\w+)", exercise.keys[0]).groups()
        assert re.search(rf"\ba {hero} .*\ba {place}\b", question)
        assert answer.startswith(f"Once upon a time there was a little {hero} in a {place}.")
        assert told.setdefault((hero, place), answer) == answer
    assert len(told) > 80
