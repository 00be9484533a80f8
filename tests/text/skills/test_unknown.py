"""What no skill teaches is answered with not knowing, and nothing that a skill teaches is."""

import re

from moe_hf.text.skills.facts import CAPITALS, CATEGORIES, OPPOSITES, SOUNDS
from moe_hf.text.skills.unknown import NOT_TOLD, UNKNOWN
from tests.text.skills.solving import drawn, unhurried

pytestmark = unhurried


def test_what_no_skill_teaches_is_answered_with_not_knowing() -> None:
    exercises = list(drawn("not knowing", 14, 3000, new=None))
    assert {exercise.turns[0][1] for exercise in exercises} == {UNKNOWN, NOT_TOLD}
    known = {
        *CAPITALS,
        *OPPOSITES,
        *OPPOSITES.values(),
        *SOUNDS,
        *(word for words in CATEGORIES.values() for word in words),
    }
    for exercise in exercises:
        if exercise.turns[0][1] == UNKNOWN:
            assert re.sub(r"^unknown (\d )?", "", exercise.keys[0]) not in known - {"car", "bus", "dog", "cat", "horse"}
        else:
            # Other exercises of a conversation may have told it.
            assert exercise.alone
