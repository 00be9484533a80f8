from pathlib import Path

import pytest

from moe_hf.memory.facts import LONGEST_TEXT, Fact, extract_facts

SENTENCES = Path(__file__).parent / "sentences"


def labelled(name: str) -> list[tuple[str, set[str]]]:
    lines = [line for line in (SENTENCES / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [line.rpartition(" => ")[::2] for line in lines]
    return [(sentence, set(facts.lower().split("; ")) - {"-"}) for sentence, facts in pairs]


def found(text: str) -> set[str]:
    return {f"{fact.key}: {fact.value}".lower() for fact in extract_facts(text)}


@pytest.mark.parametrize(("name", "precision", "recall"), [("seen.txt", 1.0, 1.0), ("held_out.txt", 0.95, 0.92)])
def test_finds_the_facts_of_a_hundred_sentences_of_which_half_hold_none(
    name: str, precision: float, recall: float
) -> None:
    rows = labelled(name)
    assert len(rows) == 100
    assert sum(not facts for _, facts in rows) == 50
    right = sum(len(facts & found(sentence)) for sentence, facts in rows)
    assert right / sum(len(found(sentence)) for sentence, _ in rows) >= precision
    assert right / sum(len(facts) for _, facts in rows) >= recall


def test_a_new_statement_has_the_key_of_the_old_one() -> None:
    before, after = extract_facts("My favourite colour is red."), extract_facts("My favorite colour is green now!")
    assert before == [Fact("favourite colour", "red")]
    assert after == [Fact("favourite colour", "green", "now")]


def test_several_values_of_one_key_stand_beside_each_other_only_where_one_may_have_several() -> None:
    facts = extract_facts("I speak Dutch and Polish, and I live in Bergen.")
    assert facts == [
        Fact("speaks", "Dutch", multiple=True),
        Fact("speaks", "Polish", multiple=True),
        Fact("home", "Bergen"),
    ]


def test_the_time_that_is_said_is_kept_beside_the_value() -> None:
    assert extract_facts("My sister Ada moved to Lisbon in May.")[1] == Fact("sister Ada's home", "Lisbon", "in may")


def test_a_pronoun_means_whom_the_turn_named_last() -> None:
    assert found("My cousin Beto is here. He works at Fiat.") == {
        "cousin's name: beto",
        "cousin beto's workplace: fiat",
    }
    assert found("He works at Fiat.") == set()


@pytest.mark.parametrize("text", ["", "   ", "?!?", "my my my is is", "I am", ", , and and", "\n\n", "'" * 50])
def test_gives_nothing_for_what_says_nothing(text: str) -> None:
    assert extract_facts(text) == []


def test_reads_the_beginning_of_a_very_long_text_in_little_time() -> None:
    filler = "and the my our is " * (LONGEST_TEXT // 10)
    assert found("I live in Bergen. " + filler) >= {"home: bergen"}
    assert found(filler + "I live in Bergen.") == set()
