"""Tables of settings: each range and conflict says what was given, and what is allowed."""

import string
from types import SimpleNamespace

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.rules import Conflict, Range, check_conflicts, check_ranges
from moe_hf.training.runs.arguments import ModelArguments
from moe_hf.training.runs.checks import CONFLICTS
from moe_hf.training.runs.settings import resolve_settings


@pytest.mark.parametrize(
    ("allowed", "values", "text"),
    [
        (Range(), {0: True, -1: False}, "at least 0"),
        (Range(1), {1: True, 0.5: False}, "at least 1"),
        (Range(below=1), {0.99: True, 1: False}, "at least 0 and below 1"),
        (Range(most=7), {7: True, 8: False}, "at least 0 and at most 7"),
        (Range(above=0), {0.1: True, 0: False}, "> 0"),
    ],
)
def test_a_range_holds_what_its_words_say(allowed, values, text) -> None:
    assert {value: allowed.holds(value) for value in values} == values
    assert str(allowed) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_has_a_range_must_be_finite(value) -> None:
    with pytest.raises(ConfigError, match=f"--rate must be a finite number, got {value}"):
        check_ranges({"rate": value}, {"rate": Range()})
    check_ranges({"rate": value}, {})


def test_a_range_may_reach_to_infinity() -> None:
    check_ranges({"norm": float("inf")}, {"norm": Range(infinite=True)})
    for wrong in (float("nan"), float("-inf"), -1.0):
        with pytest.raises(ConfigError, match=f"--norm must be at least 0, got {wrong}"):
            check_ranges({"norm": wrong}, {"norm": Range(infinite=True)})


def test_what_is_no_number_has_no_range() -> None:
    check_ranges({"steps": None, "word": "often"}, {"steps": Range(1), "word": Range(1)})


def test_the_first_conflict_is_told_with_the_values_as_they_are_typed() -> None:
    conflicts = (
        Conflict(lambda s: s.size > 9, "--size {size} is large"),
        Conflict(lambda s: s.names, "--names {names} with --size {size}"),
        Conflict(lambda s: True, "never reached"),
    )
    with pytest.raises(ConfigError, match="--names a 'b c' '' with --size 3"):
        check_conflicts(SimpleNamespace(size=3, names=["a", "b c", ""]), conflicts, {})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"size": 3}, "--size 3: no"),
        ({"size": 3.0, "rate": 1e-4}, "--size 3 and --rate 0.0001: no"),
        ({"names": ["a", ""], "fast": True, "size": ""}, "--size '', --names a '' and --fast: no"),
        ({"names": {"a": 1}, "other": 7}, """--names '{"a": 1}': no"""),
    ],
)
def test_flags_of_a_message_are_those_that_were_given_as_they_are_typed(given, text) -> None:
    conflict = Conflict(lambda s: True, "{flags}: no", ("size", "rate", "names", "fast"))
    with pytest.raises(ConfigError) as error:
        check_conflicts(SimpleNamespace(size=9, rate=9, names=[], fast=False), [conflict], given)
    assert str(error.value) == text


def test_a_value_is_told_as_it_was_given_not_as_a_library_rewrote_it() -> None:
    with pytest.raises(ConfigError, match="--fsdp full_shard is odd"):
        check_conflicts(
            SimpleNamespace(fsdp=True), [Conflict(lambda s: s.fsdp, "--fsdp {fsdp} is odd")], {"fsdp": "full_shard"}
        )


def test_every_message_of_every_table_names_a_value_and_knows_its_fields() -> None:
    settings = resolve_settings({})
    parts = (settings.model, settings.data, settings.run, settings.training)
    whole = {"world_size"} | {name for part in parts for name in vars(part)}
    tables = (
        (ModelArguments.CONFLICTS, set(vars(ModelArguments()))),
        (DataArguments.CONFLICTS, set(vars(DataArguments()))),
        (CONFLICTS, whole),
    )
    for conflicts, fields in tables:
        for conflict in conflicts:
            named = {name for _, name, _, _ in string.Formatter().parse(conflict.message) if name}
            assert named, conflict.message
            assert named <= fields | {"flags"}, conflict.message
            assert ("flags" in named) == bool(conflict.flags), conflict.message
            assert set(conflict.flags) <= fields, conflict.message


def test_arguments_made_by_hand_are_checked_as_well() -> None:
    with pytest.raises(ConfigError, match=r"--packing none .*--streaming"):
        DataArguments(packing="none", streaming=True)
    with pytest.raises(ConfigError, match=r"--model a .*--upcycle b"):
        ModelArguments(model="a", upcycle="b")
