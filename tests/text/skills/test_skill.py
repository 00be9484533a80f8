"""A skill's exercises are held out by their keys, and a fact by its phrasing, never whole."""

from random import Random

from moe_hf.text.skills import SKILLS
from moe_hf.text.skills.skill import fact_exercise, is_held_out, phrase
from moe_hf.text.skills.wordings import Wordings, core
from tests.text.skills import test_arithmetic, test_letters, test_lists, test_reading

WORDINGS = Wordings(trained=("What is {x}?", "Tell me {x}."), new=("So {x} then?",))


def test_every_skill_that_generalises_has_a_solver() -> None:
    modules = (test_arithmetic, test_lists, test_letters, test_reading)
    solved = [name for module in modules for name in module.SOLVERS]
    assert sorted(solved) == sorted(skill.name for skill in SKILLS if skill.sort == "generalise")


def test_a_phrase_is_one_of_its_wordings_and_often_typed_as_it_stands() -> None:
    typed = [phrase(Random(seed), WORDINGS, x="it") for seed in range(400)]
    plain = sum(text in ("What is it?", "Tell me it.") for text in typed)
    # A quarter is typed in a hurry, and not all of these change.
    assert 0.7 < plain / len(typed) < 0.95
    assert all("then" not in text for text in typed)


def test_a_fact_is_keyed_by_its_phrasing_and_not_at_all_in_a_new_one() -> None:
    keys = {fact_exercise(Random(seed), "s", "f", WORDINGS, False, "A.", x="it").keys for seed in range(40)}
    assert keys == {(f"s f {core(template)}",) for template in WORDINGS.trained}
    fresh = fact_exercise(Random(0), "s", "f", WORDINGS, True, "A.", x="it")
    assert fresh.keys == ()
    assert fresh.turns[0][1] == "A."


def test_an_eighth_of_all_keys_is_held_out_for_good() -> None:
    held = [is_held_out(f"some key {i}") for i in range(4000)]
    assert held == [is_held_out(f"some key {i}") for i in range(4000)]
    assert 0.1 < sum(held) / len(held) < 0.14
