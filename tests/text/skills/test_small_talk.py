"""Small talk has one answer to each sentence, and one name for the model."""

from moe_hf.text.skills import small_talk
from moe_hf.text.skills.wordings import core
from tests.text.skills.solving import all_sentences, drawn, unhurried

pytestmark = unhurried


def test_each_sentence_of_small_talk_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for answer, wordings in {**small_talk._SMALL_TALK, small_talk.MODEL_NAME: small_talk.ASKED_NAME}.items():
        for pattern in wordings.trained + wordings.new:
            for sentence in all_sentences(pattern):
                assert answers.setdefault(core(sentence), answer) == answer, sentence


def test_every_answer_is_drawn_and_the_model_is_named_when_asked() -> None:
    turns = {exercise.turns[0] for exercise in drawn("small talk", 17, 3000, new=None)}
    assert {answer for _, answer in turns} == {small_talk.MODEL_NAME, *small_talk._SMALL_TALK}
    asked = {core(sentence) for pattern in small_talk.ASKED_NAME.trained for sentence in all_sentences(pattern)}
    assert {answer for question, answer in turns if core(question) in asked} == {small_talk.MODEL_NAME}


def test_a_pattern_of_one_sentence_is_never_held_out() -> None:
    keyed = {exercise.turns[0][0]: exercise.keys for exercise in drawn("small talk", 18, 3000)}
    assert keyed["Who are you?"] == ()
    assert any(keyed.values())
