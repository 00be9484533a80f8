"""The embedded corpus: conversations to train on and held-out questions to score, drawn from the table of skills."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple, TypedDict

from moe_hf.base.errors import ConfigError
from moe_hf.text.chat_template import Message
from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.skill import Exercise, Skill, is_held_out


class Conversation(TypedDict):
    """Messages with the name of the skill that was drawn first."""

    messages: list[Message]
    skill: str


class Question(NamedTuple):
    """A held-out question: the messages up to it, and the one answer that counts as right.

    Attributes:
        new_wording: whether it is also asked in a wording that training never draws.
    """

    skill: str
    messages: list[Message]
    answer: str
    new_wording: bool = False


class EmbeddedCorpus:
    """Conversations that the project makes itself: the same seed gives the same ones on every machine.

    Args:
        skills: the table of skills to draw from.
        multi_turn_from: the part of the training conversations, in [0, 1], after which they may have several turns;
            before it each is one exercise, so that short ones come first.
        most_exercises: the most exercises in one conversation, at least 1.

    Raises:
        ConfigError: a value is out of range or there is no skill.
    """

    def __init__(self, skills: Sequence[Skill] = SKILLS, multi_turn_from: float = 0.3, most_exercises: int = 4) -> None:
        if not skills:
            raise ConfigError(f"the embedded corpus needs at least one skill, got {skills!r}")
        if not 0 <= multi_turn_from <= 1:
            raise ConfigError(f"multi_turn_from must be in [0, 1], got {multi_turn_from}")
        if most_exercises < 1:
            raise ConfigError(f"most_exercises must be at least 1, got {most_exercises}")
        self.skills = tuple(skills)
        self.multi_turn_from = multi_turn_from
        self.most_exercises = most_exercises

    def train_conversations(self, num: int, seed: int = 0) -> Iterator[Conversation]:
        """`num` conversations in the order in which to learn them: short ones first, none with a held-out key."""
        # Seeded by a text, which is hashed alike everywhere: no seed of training is also one of held-out questions.
        rng = Random(f"train {seed}")
        weights = [skill.weight for skill in self.skills]
        for index in range(num):
            several = index >= self.multi_turn_from * num and rng.random() < 0.5
            count = rng.randint(2, self.most_exercises) if several and self.most_exercises > 1 else 1
            drawn = rng.choices(self.skills, weights, k=count)
            yield _conversation(drawn[0].name, [_training_exercise(rng, skill) for skill in drawn])

    def heldout_questions(
        self, per_skill: int = 30, seed: int = 0, exercises_before: int = 0, new_wording: bool = False
    ) -> list[Question]:
        """Questions that no training conversation holds, `per_skill` for each skill.

        Args:
            per_skill: how many for each skill; fewer where a skill has fewer held-out questions.
            seed: another seed draws other questions from the same held-out part.
            exercises_before: how many training exercises of any skill precede the question in the same conversation.
            new_wording: ask in wordings that training never draws. What is asked is held out as well, facts aside.
        """
        questions = []
        for skill in self.skills:
            rng = Random(f"held out {skill.name} {seed}" + " new wording" * new_wording)
            seen: set[str] = set()
            # A small skill runs out of held-out questions, so the search is bounded.
            for _ in range(per_skill * 200):
                if len(seen) == per_skill:
                    break
                exercise = skill.make(rng, new_wording)
                text = " / ".join([exercise.system or "", *(question for question, _ in exercise.turns)])
                # Held out by its first key: the others name what its answer shows on the side.
                if text in seen or not (is_held_out(exercise.keys[0]) if exercise.keys else new_wording):
                    continue
                seen.add(text)
                before = [_training_exercise(rng, rng.choice(self.skills)) for _ in range(exercises_before)]
                conversation = _conversation(skill.name, [*(e for e in before if not _stands_alone(e)), exercise])
                messages = conversation["messages"]
                questions.append(Question(skill.name, messages[:-1], messages[-1]["content"], new_wording))
        return questions


def _training_exercise(rng: Random, skill: Skill) -> Exercise:
    while True:
        exercise = skill.make(rng, False)
        if not any(is_held_out(key) for key in exercise.keys):
            return exercise


def _stands_alone(exercise: Exercise) -> bool:
    # A system message may contradict the other exercises (it can rename the model).
    return exercise.alone or exercise.system is not None


def _conversation(skill: str, exercises: list[Exercise]) -> Conversation:
    alone = next((exercise for exercise in exercises if _stands_alone(exercise)), None)
    messages: list[Message] = []
    if alone is not None and alone.system is not None:
        messages.append({"role": "system", "content": alone.system})
    for exercise in exercises if alone is None else [alone]:
        for question, answer in exercise.turns:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "skill": skill}
