"""Words to draw on: no list repeats itself, invented words can be spelt, and lengths keep their limit."""

from random import Random

import pytest

from moe_hf.text.skills import words


@pytest.mark.parametrize("name", ["NAMES", "THINGS", "COLORS", "CITIES", "ANIMALS", "SPELLING_WORDS"])
def test_no_list_has_a_word_twice(name: str) -> None:
    listed = getattr(words, name)
    assert len(set(listed)) == len(listed) >= 10


def test_words_to_spell_are_letters_up_to_the_longest() -> None:
    drawn = [words.spelling_word(Random(seed)) for seed in range(2000)]
    assert all(word.isascii() and word.isalpha() and word.islower() for word in drawn)
    assert max(map(len, drawn)) == words.LONGEST_WORD
    real = sum(word in words.SPELLING_WORDS for word in drawn)
    assert 0.45 < real / len(drawn) < 0.55


def test_an_invented_word_has_the_syllables_asked_for_and_is_nobody_s() -> None:
    drawn = {words.invented_word(Random(seed), syllables=3) for seed in range(500)}
    assert len(drawn) > 490
    assert not drawn & {*words.SPELLING_WORDS, *words.THINGS, *words.ANIMALS}
    assert min(map(len, drawn)) >= 6


def test_people_have_common_names_unless_invented_ones_are_asked_for() -> None:
    assert all(words.person(Random(seed), invented=0.0) in words.NAMES for seed in range(50))
    strangers = [words.person(Random(seed), invented=1.0) for seed in range(50)]
    assert not set(strangers) & set(words.NAMES)
    assert all(name[0].isupper() for name in strangers)
