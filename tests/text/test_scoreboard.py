"""The scoreboard counts exact matches per skill, asks everything once and shows what it counted."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.text.chat_template import Message
from moe_hf.text.corpus import EmbeddedCorpus, Question
from moe_hf.text.scoreboard import render_scoreboard, score_answers


def _question(skill: str, text: str, answer: str) -> Question:
    return Question(skill, [{"role": "user", "content": text}], answer)


QUESTIONS = [
    _question("addition", "1+1", "2"),
    _question("addition", "a much longer question: 2+2", "4"),
    _question("addition", "3+3", "6"),
    _question("addition", "4+4", "8"),
    _question("capital", "Capital of France?", "Paris"),
    _question("spelling", "cat", "c-a-t"),
    _question("spelling", "dog", "d-o-g"),
]
ANSWERS = {"1+1": " 2\n", "a much longer question: 2+2": "4", "3+3": "7", "4+4": "8.", "Capital of France?": "Paris",
           "cat": "c-a-t", "dog": "d-g-o"}  # fmt: skip


def _answer(batch: list[list[Message]]) -> list[str]:
    return [ANSWERS[messages[-1]["content"]] for messages in batch]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_accuracy_is_counted_per_skill_and_averaged_over_skills(batch_size: int) -> None:
    board = score_answers(QUESTIONS, _answer, batch_size=batch_size)
    assert [(s.skill, s.num_right, s.num_questions) for s in board.scores] == [
        ("addition", 2, 4),
        ("capital", 1, 1),
        ("spelling", 1, 2),
    ]
    assert board.mean_by_sort == {"generalise": 0.5, "facts": 1.0}
    assert board.mean == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_the_first_wrong_answer_is_kept_as_an_example() -> None:
    board = score_answers(QUESTIONS, _answer)
    assert board.scores[0].example == ("3+3", "6", "7")
    assert board.scores[1].example is None


def test_every_question_is_asked_once_in_batches_of_the_given_size() -> None:
    sizes, asked = [], []

    def answerer(batch: list[list[Message]]) -> list[str]:
        sizes.append(len(batch))
        asked.extend(messages[-1]["content"] for messages in batch)
        return _answer(batch)

    score_answers(QUESTIONS, answerer, batch_size=3)
    assert sizes == [3, 3, 1]
    assert sorted(asked) == sorted(ANSWERS)


def test_a_perfect_answerer_gets_everything_right() -> None:
    questions = EmbeddedCorpus().heldout_questions(4)
    right = {str(q.messages): q.answer for q in questions}
    board = score_answers(questions, lambda batch: [right[str(messages)] for messages in batch])
    assert board.mean == 1.0
    assert set(board.mean_by_sort) == {"generalise", "facts", "talk"}


def test_the_table_shows_each_skill_and_the_means() -> None:
    text = render_scoreboard(score_answers(QUESTIONS, _answer), width=4)
    assert text.splitlines() == [
        "GENERALISE  50.0%",
        "  addition  50.0%  ##    2/4",
        "  spelling  50.0%  ##    1/2",
        "FACTS      100.0%",
        "  capital  100.0%  ####  1/1",
        "MEAN OF ALL  66.7%",
    ]


def test_new_wordings_are_counted_apart_and_stand_in_a_column_of_their_own() -> None:
    new = [q._replace(new_wording=True) for q in QUESTIONS if q.skill in ("addition", "spelling")]
    board = score_answers([*QUESTIONS, *new[:1], *new[-2:]], _answer)
    plain = score_answers(QUESTIONS, _answer)
    assert [s[:5] for s in board.scores] == [s[:5] for s in plain.scores]
    assert [(s.num_right_new, s.num_new) for s in board.scores] == [(1, 1), (0, 0), (1, 2)]
    assert [s.new_accuracy for s in board.scores] == [1.0, None, 0.5]
    assert (plain.new_mean, board.new_mean) == (None, 0.75)
    text = render_scoreboard(board._replace(free_wording=(3, 4)), width=4)
    assert "  spelling  50.0%  ##    1/2  new wording  50.0%" in text
    assert text.splitlines()[-2:] == ["NEW WORDING  75.0%", "FREE WORDING  75.0%  3/4"]
    with pytest.raises(ConfigError, match="'addition' in trained wordings"):
        score_answers(new, _answer)


def test_no_questions_and_missing_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one question"):
        score_answers([], _answer)
    with pytest.raises(ConfigError, match="asked 7 questions and gave 1"):
        score_answers(QUESTIONS, lambda batch: ["2"])
