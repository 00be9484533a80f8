"""The scoreboard: exact-match accuracy per skill and per sort of skill."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe_hf.base.errors import ConfigError
from moe_hf.text.chat_template import Message
from moe_hf.text.corpus import Question
from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.skill import Skill

Answerer = Callable[[list[list[Message]]], list[str]]
"""Takes a batch of conversations that end with the user's message, gives the text of one answer for each."""


class SkillScore(NamedTuple):
    """How one skill did: `num_right` of `num_questions`, with the first wrong answer as an example, if there is one.

    `num_right_new` of `num_new` are the questions in wordings that training never draws, which are counted apart.
    """

    skill: str
    sort: str
    num_right: int
    num_questions: int
    example: tuple[str, str, str] | None
    num_right_new: int = 0
    num_new: int = 0

    @property
    def accuracy(self) -> float:
        """The right answers' share, in [0, 1]."""
        return self.num_right / self.num_questions

    @property
    def new_accuracy(self) -> float | None:
        """The same of the questions in new wordings; None if none was asked."""
        return self.num_right_new / self.num_new if self.num_new else None


class Scoreboard(NamedTuple):
    """The scores of all skills, in the order of their first question.

    `free_wording` has the right ones, and all, of the questions in nobody's pattern; None if they were not asked.
    """

    scores: tuple[SkillScore, ...]
    free_wording: tuple[int, int] | None = None

    @property
    def mean(self) -> float:
        """The mean accuracy over skills, in [0, 1]."""
        return _mean([score.accuracy for score in self.scores])

    @property
    def new_mean(self) -> float | None:
        """The mean over skills of the accuracy in new wordings, in [0, 1]; None if nothing was asked so."""
        values = [score.new_accuracy for score in self.scores if score.new_accuracy is not None]
        return _mean(values) if values else None

    @property
    def mean_by_sort(self) -> dict[str, float]:
        """The mean accuracy over the skills of each sort, in [0, 1]."""
        sorts = dict.fromkeys(score.sort for score in self.scores)
        return {sort: _mean([s.accuracy for s in self.scores if s.sort == sort]) for sort in sorts}


def score_answers(
    questions: Sequence[Question], answerer: Answerer, batch_size: int = 64, skills: Sequence[Skill] = SKILLS
) -> Scoreboard:
    """Asks every question and counts the answers that equal the right one, blanks at the ends aside.

    Args:
        questions: what to ask; not empty.
        answerer: the model behind a function.
        batch_size: the most questions that `answerer` gets at once. Questions of like length go together.
        skills: where the sort of each skill is looked up.

    Raises:
        ConfigError: there are no questions, or the answerer gives another number of answers than it was asked.
    """
    if not questions:
        raise ConfigError(f"the scoreboard needs at least one question, got {questions!r}")
    sorts = {skill.name: skill.sort for skill in skills}
    # Like lengths together: a short question is not padded to a long one.
    order = sorted(range(len(questions)), key=lambda i: _length(questions[i]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = answerer([questions[i].messages for i in indices])
        if len(batch) != len(indices):
            raise ConfigError(f"the answerer was asked {len(indices)} questions and gave {len(batch)} answers")
        answers.update(zip(indices, batch, strict=True))
    right = [answers[i].strip() == question.answer.strip() for i, question in enumerate(questions)]
    scores = []
    for skill in dict.fromkeys(question.skill for question in questions):
        asked = [i for i, question in enumerate(questions) if question.skill == skill and not question.new_wording]
        new = [i for i, question in enumerate(questions) if question.skill == skill and question.new_wording]
        if not asked:
            raise ConfigError(
                f"the scoreboard needs questions of {skill!r} in trained wordings beside those in new ones"
            )
        wrong = [
            (questions[i].messages[-1]["content"], questions[i].answer, answers[i].strip())
            for i in asked
            if not right[i]
        ]
        counts = (
            len(asked) - len(wrong),
            len(asked),
            wrong[0] if wrong else None,
            sum(right[i] for i in new),
            len(new),
        )
        scores.append(SkillScore(skill, sorts[skill], *counts))
    return Scoreboard(tuple(scores))


def render_scoreboard(board: Scoreboard, width: int = 20) -> str:
    """The scoreboard as plain text: a bar for each skill, grouped by sort, with the means below.

    The last column, if it was asked for, has the questions in wordings that training never draws.

    Args:
        board: what was scored.
        width: characters of a full bar.
    """
    longest = max(len(score.skill) for score in board.scores)
    lines = []
    for sort, mean in board.mean_by_sort.items():
        lines.append(f"{sort.upper():<{longest + 2}}{mean:7.1%}")
        for score in sorted((s for s in board.scores if s.sort == sort), key=lambda s: -s.accuracy):
            bar = "#" * round(score.accuracy * width)
            lines.append(
                f"  {score.skill:<{longest}}{score.accuracy:7.1%}  {bar:<{width}}  "
                f"{score.num_right}/{score.num_questions}{_new_part(score)}"
            )
    lines.append(f"{'MEAN OF ALL':<{longest + 2}}{board.mean:7.1%}")
    lines += [f"{name.upper():<{longest + 2}}{part}" for name, part in wording_lines(board)]
    return "\n".join(lines)


def wording_lines(board: Scoreboard) -> list[tuple[str, str]]:
    """What there is to say of other wordings than the trained ones: names and values."""
    lines = []
    if board.new_mean is not None:
        lines.append(("new wording", f"{board.new_mean:7.1%}"))
    if board.free_wording is not None:
        right, asked = board.free_wording
        lines.append(("free wording", f"{right / asked:7.1%}  {right}/{asked}"))
    return lines


def _new_part(score: SkillScore) -> str:
    return "" if score.new_accuracy is None else f"  new wording {score.new_accuracy:6.1%}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _length(question: Question) -> int:
    return sum(len(message["content"]) for message in question.messages)
