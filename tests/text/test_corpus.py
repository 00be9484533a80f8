"""The corpus is the same for the same seed, keeps held-out questions from training, and goes from short to long."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.text.chat_template import Message
from moe_hf.text.corpus import Conversation, EmbeddedCorpus, Question
from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.skill import HELD_OUT_FRACTION, Exercise, Skill, is_held_out
from moe_hf.text.skills.wordings import core

CORPUS = EmbeddedCorpus()


@pytest.fixture(scope="module")
def training() -> list[Conversation]:
    return list(CORPUS.train_conversations(30_000, seed=0))


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "new"])
def questions(request: pytest.FixtureRequest) -> list[Question]:
    return CORPUS.heldout_questions(new_wording=request.param)


def _asked(messages: list[Message]) -> list[str]:
    """What the other side says, without the marks, capitals and small words that a hurried person leaves out."""
    return [core(m["content"]) for m in messages if m["role"] != "assistant"]


def test_the_same_seed_gives_the_same_conversations_whatever_the_global_generator_does() -> None:
    random.seed(1)
    first = list(CORPUS.train_conversations(200, seed=3))
    random.seed(2)
    assert list(CORPUS.train_conversations(200, seed=3)) == first
    assert list(CORPUS.train_conversations(200, seed=4)) != first
    assert CORPUS.heldout_questions(5, seed=1) == CORPUS.heldout_questions(5, seed=1)


def test_generation_is_the_same_on_every_machine() -> None:
    # Neither depends on the hash seed of the interpreter or on the platform's generators.
    toy = Skill(
        "toy", "talk", 1.0, lambda rng, new: Exercise((f"toy {rng.random()}",), ((f"{rng.random():.6f}", "x"),))
    )
    first = next(EmbeddedCorpus((toy,)).train_conversations(1, seed=0))
    assert first == {
        "messages": [{"role": "user", "content": "0.048772"}, {"role": "assistant", "content": "x"}],
        "skill": "toy",
    }
    assert [i for i in range(30) if is_held_out(f"add {i} 9")] == [6, 23, 27]
    assert sum(is_held_out(f"key {i}") for i in range(10_000)) == pytest.approx(10_000 * HELD_OUT_FRACTION, rel=0.1)


def test_no_training_conversation_holds_a_held_out_question(
    training: list[Conversation], questions: list[Question]
) -> None:
    shown: set[tuple[str, str]] = set()
    for conversation in training:
        asked = _asked(conversation["messages"])
        answers = [after["content"] for m, after in pairwise(conversation["messages"]) if m["role"] != "assistant"]
        # A question after a system message is another one without it.
        whole = conversation["messages"][0]["role"] == "system"
        for end in range(1, len(asked) + 1):
            for start in range(max(0, end - 4), 1 if whole else end):
                # With its answer: "the shoe" is known after talk of it, "a shoe" is not.
                shown.add((" / ".join(asked[start:end]), answers[end - 1]))
    leaked = [question for question in questions if (" / ".join(_asked(question.messages)), question.answer) in shown]
    assert leaked == []


def test_every_skill_has_many_different_held_out_questions(questions: list[Question]) -> None:
    counts = Counter(question.skill for question in questions)
    assert list(counts) == [skill.name for skill in SKILLS]
    assert min(counts.values()) >= 20
    texts = [(question.skill, *(message["content"] for message in question.messages)) for question in questions]
    assert len(set(texts)) == len(texts)


def test_every_answer_is_asked_for_in_training_under_another_phrasing(
    training: list[Conversation], questions: list[Question]
) -> None:
    learnt = {m["content"] for conversation in training for m in conversation["messages"] if m["role"] == "assistant"}
    facts = {skill.name for skill in SKILLS if skill.sort == "facts"}
    assert [q.answer for q in questions if q.skill in facts and q.answer not in learnt] == []


def test_short_conversations_come_first_and_later_ones_mix_skills(training: list[Conversation]) -> None:
    third = len(training) * 3 // 10
    with_turns = ("remembering", "persona", "possession")
    early = [len(c["messages"]) for c in training[:third] if c["skill"] not in with_turns]
    late = [len(c["messages"]) for c in training[third:] if c["skill"] not in with_turns]
    assert set(early) == {2}
    assert max(late) > 6
    assert 0.4 < sum(length > 2 for length in late) / len(late) < 0.6


def test_turns_alternate_and_a_system_message_only_opens(training: list[Conversation]) -> None:
    for conversation in training:
        roles = [message["role"] for message in conversation["messages"]]
        start = 1 if roles[0] == "system" else 0
        assert roles[start:] == ["user", "assistant"] * ((len(roles) - start) // 2)
        assert all(message["content"] for message in conversation["messages"])


def test_skills_are_drawn_by_their_weights(training: list[Conversation]) -> None:
    counts = Counter(conversation["skill"] for conversation in training)
    total = sum(skill.weight for skill in SKILLS)
    for skill in SKILLS:
        assert counts[skill.name] / len(training) == pytest.approx(skill.weight / total, rel=0.2)


def test_questions_can_come_after_other_talk() -> None:
    plain = {q.skill: q for q in CORPUS.heldout_questions(1, seed=5)}
    for question in CORPUS.heldout_questions(1, seed=5, exercises_before=2):
        before = plain[question.skill]
        assert question.messages[-1]["role"] == "user"
        assert len(question.messages) >= len(before.messages)
    assert any(len(q.messages) >= 5 for q in CORPUS.heldout_questions(1, seed=5, exercises_before=2))


def test_an_exercise_is_kept_from_training_by_any_of_its_keys() -> None:
    held = next(f"k{i}" for i in range(1000) if is_held_out(f"k{i}"))
    free = next(f"k{i}" for i in range(1000) if not is_held_out(f"k{i}"))

    def make(rng: random.Random, new: bool) -> Exercise:
        if rng.random() < 0.5:
            return Exercise((free, held), (("side", "x"),))
        return Exercise((free,), (("plain", "x"),))

    corpus = EmbeddedCorpus((Skill("toy", "generalise", 1.0, make),))
    asked = {m["content"] for c in corpus.train_conversations(50) for m in c["messages"] if m["role"] == "user"}
    assert asked == {"plain"}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one skill"):
        EmbeddedCorpus(())
    with pytest.raises(ConfigError, match=r"multi_turn_from.*1\.5"):
        EmbeddedCorpus(multi_turn_from=1.5)
    with pytest.raises(ConfigError, match=r"most_exercises.*0"):
        EmbeddedCorpus(most_exercises=0)
