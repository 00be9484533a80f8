"""The scoreboard: exact-match accuracy per skill and per sort of skill."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe_hf.base.errors import ConfigError
from moe_hf.text.corpus import Message, Question
from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.skill import Skill

Answerer = Callable[[list[list[Message]]], list[str]]
"""Takes a batch of conversations that end with the user's message, gives the text of one answer for each."""


class SkillScore(NamedTuple):
    """How one skill did: `num_right` of `num_questions`, with the first wrong answer as an example, if there is one."""

    skill: str
    sort: str
    num_right: int
    num_questions: int
    example: tuple[str, str, str] | None

    @property
    def accuracy(self) -> float:
        """The right answers' share, in [0, 1]."""
        return self.num_right / self.num_questions


class Scoreboard(NamedTuple):
    """The scores of all skills, in the order of their first question."""

    scores: tuple[SkillScore, ...]

    @property
    def mean(self) -> float:
        """The mean accuracy over skills, in [0, 1]."""
        return _mean([score.accuracy for score in self.scores])

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
        raise ConfigError("the scoreboard needs at least one question, got none")
    sorts = {skill.name: skill.sort for skill in skills}
    order = sorted(range(len(questions)), key=lambda i: _length(questions[i]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = answerer([questions[i].messages for i in indices])
        if len(batch) != len(indices):
            raise ConfigError(f"the answerer was asked {len(indices)} questions and gave {len(batch)} answers")
        answers.update(zip(indices, batch, strict=True))
    scores = []
    for skill in dict.fromkeys(question.skill for question in questions):
        asked = [(question, answers[i].strip()) for i, question in enumerate(questions) if question.skill == skill]
        wrong = [(q.messages[-1]["content"], q.answer, answer) for q, answer in asked if answer != q.answer.strip()]
        scores.append(SkillScore(skill, sorts[skill], len(asked) - len(wrong), len(asked), wrong[0] if wrong else None))
    return Scoreboard(tuple(scores))


def render_scoreboard(board: Scoreboard, width: int = 20) -> str:
    """The scoreboard as plain text: a bar for each skill, grouped by sort, with the means below.

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
                f"{score.num_right}/{score.num_questions}"
            )
    lines.append(f"{'MEAN OF ALL':<{longest + 2}}{board.mean:7.1%}")
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _length(question: Question) -> int:
    return sum(len(message["content"]) for message in question.messages)
