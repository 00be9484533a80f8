import re

from moe_hf.memory.fact_patterns import EMPTY_VALUES, MULTIPLE, PREDICATES, RELATION, TAIL


def test_each_predicate_names_an_attribute_for_each_value_that_it_captures() -> None:
    for predicate in PREDICATES:
        assert set(predicate.pattern.groupindex) - {"key"} == set(predicate.attributes), predicate.pattern.pattern
        assert predicate.kind in ("name", "text")


def test_attributes_with_several_values_are_those_of_a_predicate() -> None:
    attributes = {attribute for predicate in PREDICATES for attribute in predicate.attributes.values()}
    assert attributes >= MULTIPLE


def test_relations_are_whole_words() -> None:
    assert re.fullmatch(RELATION, "mother-in-law")
    assert re.fullmatch(RELATION, "best friend")
    assert not re.fullmatch(RELATION, "motherboard")


def test_a_time_behind_a_value_ends_it() -> None:
    match = TAIL.search("Lisbon in May 2024 with two dogs")
    assert match is not None
    assert (match.start(), match["when"]) == (len("Lisbon"), "in May 2024")


def test_vague_words_are_lower_case_since_values_are_compared_so() -> None:
    assert {word.lower() for word in EMPTY_VALUES} == EMPTY_VALUES
