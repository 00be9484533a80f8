"""The skill of reading: questions whose answer stands in the text that the user gives.

Two questions are asked about half of the texts, so that the second must be answered from further back.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.words import COLORS, THINGS, person

_Turn = tuple[str, str]


def _about(rng: Random, text: str, turns: list[_Turn]) -> Exercise:
    """The text with the first question, or before it in a turn of its own; then the other questions."""
    if rng.random() < 0.2:
        turns = [(text, "I see."), *turns]
    else:
        turns = [(f"{text} {turns[0][0]}", turns[0][1]), *turns[1:]]
    return Exercise((f"possession {text}",), tuple(turns))


def possession(rng: Random) -> Exercise:
    """Two people with a thing each: who has which, and what color it is."""
    people = [person(rng), person(rng)]
    while people[0] == people[1]:
        people[1] = person(rng)
    things, colors = rng.sample(THINGS, 2), rng.sample(COLORS, 2)
    text = " ".join(f"{p} has a {c} {t}." for p, c, t in zip(people, colors, things, strict=True))

    def turn(i: int) -> _Turn:
        p, c, t = people[i], colors[i], things[i]
        return rng.choice([
            (phrase(rng, ("Who has the {t}?", "Who has a {t}?"), t=t), f"{p} has the {t}."),
            (phrase(rng, ("What does {p} have?", "What has {p} got?"), p=p), f"{p} has a {c} {t}."),
            (phrase(rng, ("What color is the {t}?", "Which color is {p}'s {t}?"), p=p, t=t), f"The {t} is {c}."),
        ])  # fmt: skip

    return _about(rng, text, [turn(i) for i in rng.sample(range(2), rng.randint(1, 2))])
