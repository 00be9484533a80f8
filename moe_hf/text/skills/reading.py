"""The skill of reading: questions whose answer stands in the text that the user gives.

Two questions are asked about half of the texts, so that the second must be answered from further back.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.wordings import Wordings
from moe_hf.text.skills.words import COLORS, THINGS, person

_Turn = tuple[str, str]

_OWNER = Wordings(
    trained=(
        "Who has (the|a) {t}?",
        "Who (owns|has got|is it that has) the {t}?",
        "(Tell me|Say) who has (the|a) {t}.",
        "Whose is the {t}?",
    ),
    new=("Do you know who has the {t}?", "Which person has the {t}?", "The {t}, who has it?", "Whose {t} is it?"),
)
_OWNED = Wordings(
    trained=(
        "What does {p} (have|own)?",
        "What has {p} got?",
        "(Tell me|Say) what {p} has.",
        "What is it that {p} has?",
    ),
    new=("Do you know what {p} has?", "{p} has what?", "Which thing does {p} have?", "What thing has {p} got?"),
)
_COLOR = Wordings(
    trained=(
        "(What|Which) (color|colour) is (the|{p}'s) {t}?",
        "What is the (color|colour) of (the|{p}'s) {t}?",
        "(Tell me|Say) (what|which) (color|colour) the {t} is.",
        "(What|Which) (color|colour) does the {t} have?",
    ),
    new=(
        "Do you know (what|which) (color|colour) the {t} is?",
        "The {t} is (what|which) (color|colour)?",
        "(What|Which) (color|colour) has the {t}?",
        "The (color|colour) of the {t}?",
    ),
)


def _about(rng: Random, text: str, turns: list[_Turn]) -> Exercise:
    """The text with the first question, or before it in a turn of its own; then the other questions."""
    if rng.random() < 0.2:
        turns = [(text, "I see."), *turns]
    else:
        turns = [(f"{text} {turns[0][0]}", turns[0][1]), *turns[1:]]
    return Exercise((f"possession {text}",), tuple(turns))


def possession(rng: Random, new: bool = False) -> Exercise:
    """Two people with a thing each: who has which, and what color it is."""
    people = [person(rng), person(rng)]
    while people[0] == people[1]:
        people[1] = person(rng)
    things, colors = rng.sample(THINGS, 2), rng.sample(COLORS, 2)
    between = "." if rng.random() < 0.85 else " and"
    first, second = (f"{p} has a {c} {t}" for p, c, t in zip(people, colors, things, strict=True))

    def turn(i: int) -> _Turn:
        p, c, t = people[i], colors[i], things[i]
        return rng.choice([
            (phrase(rng, _OWNER, new, t=t), f"{p} has the {t}."),
            (phrase(rng, _OWNED, new, p=p), f"{p} has a {c} {t}."),
            (phrase(rng, _COLOR, new, p=p, t=t), f"The {t} is {c}."),
        ])  # fmt: skip

    text = f"{first}{between} {second}."
    return _about(rng, text, [turn(i) for i in rng.sample(range(2), rng.randint(1, 2))])
