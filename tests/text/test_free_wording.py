"""Free questions are many, are in no pattern of their skill, and have the answers that the skills give."""

from random import Random

from moe_hf.text.free_wording import free_wording_questions
from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.wordings import core


def test_free_questions_are_many_and_in_no_pattern_of_their_skill() -> None:
    questions = free_wording_questions()
    assert len(questions) >= 65
    assert {question.skill for question in questions} >= {skill.name for skill in SKILLS} - {"persona", "story"}
    rng = Random(5)
    drawn = {skill.name: {core(skill.make(rng, False).turns[-1][0]) for _ in range(1500)} for skill in SKILLS}
    met = [q.messages[-1]["content"] for q in questions if core(q.messages[-1]["content"]) in drawn[q.skill]]
    # A few short ones are what anybody would say.
    assert len(met) <= len(questions) // 10, met


def test_turns_alternate_and_the_user_asks_last() -> None:
    for question in free_wording_questions():
        roles = [message["role"] for message in question.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert question.answer


def test_answers_are_worked_out_as_the_skills_do() -> None:
    answers = {question.messages[-1]["content"]: question.answer for question in free_wording_questions()}
    assert answers["33 added to 58 is what?"] == "3+8=11, 3+5+1=9, so 91."
    assert answers["Check whether 91 is even"] == "91 ends in 1, so it is odd."
    assert answers["spell restaurant"] == "r-e-s-t-a-u-r-a-n-t."
    assert answers["count letters: umbrella"].endswith("a8, so 8.")
