"""A registry's misses name what is allowed and what was probably meant."""

import pytest

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.base.registry import Registry


@pytest.fixture
def registry() -> Registry[type]:
    return Registry("mixer", {"mamba": int, "attention": str})


def test_a_hit_gives_the_part(registry: Registry[type]) -> None:
    assert registry["attention"] is str


def test_a_miss_names_the_kind_the_word_and_what_is_allowed(registry: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"unknown mixer 'hyena'; allowed: attention, mamba$"):
        registry["hyena"]


def test_a_near_miss_names_the_nearest(registry: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'attention'\?"):
        registry["atention"]


@pytest.mark.parametrize("word", [None, 3, ("attention",)])
def test_a_word_of_another_type_is_a_miss_too(registry: Registry[type], word: object) -> None:
    with pytest.raises(ConfigError, match="unknown mixer"):
        registry[word]
    assert word not in registry


def test_asking_whether_a_name_is_there_does_not_raise(registry: Registry[type]) -> None:
    assert "mamba" in registry
    assert "mumba" not in registry


def test_keeps_the_written_order(registry: Registry[type]) -> None:
    assert list(registry) == ["mamba", "attention"]
    assert len(registry) == 2


def test_is_not_changed_through_the_table_it_was_made_from() -> None:
    parts = {"one": 1}
    registry = Registry("number", parts)
    parts["two"] = 2
    assert "two" not in registry
    with pytest.raises(TypeError):
        registry["two"] = 2  # type: ignore[index]


def test_no_hint_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["attention"]) == ""
