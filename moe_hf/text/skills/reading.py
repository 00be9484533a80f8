"""Skills of reading: questions whose answer stands in the text that the user gives, and a rule applied to a name.

Two questions are asked about most texts, so that the second must be answered from further back.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.words import ANIMALS, CITIES, COLORS, JOBS, THINGS, invented_word, person

_Turn = tuple[str, str]


def _people(rng: Random, num: int) -> list[str]:
    people: list[str] = []
    while len(people) < num:
        name = person(rng)
        if name not in people:
            people.append(name)
    return people


def _about(rng: Random, skill: str, text: str, turns: list[_Turn]) -> Exercise:
    """The text with the first question, or before it in a turn of its own; then the other questions."""
    if rng.random() < 0.2:
        turns = [(text, "I see."), *turns]
    else:
        turns = [(f"{text} {turns[0][0]}", turns[0][1]), *turns[1:]]
    return Exercise((f"{skill} {text}",), tuple(turns))


def possession(rng: Random) -> Exercise:
    """Who has which thing, and what color it is."""
    num = 2
    people, things, colors = _people(rng, num), rng.sample(THINGS, num), rng.sample(COLORS, num)
    text = " ".join(f"{p} has a {c} {t}." for p, c, t in zip(people, colors, things, strict=True))

    def turn(i: int) -> _Turn:
        p, c, t = people[i], colors[i], things[i]
        return rng.choice([
            (phrase(rng, ("Who has the {t}?", "Who has a {t}?"), t=t), f"{p} has the {t}."),
            (phrase(rng, ("What does {p} have?", "What has {p} got?"), p=p), f"{p} has a {c} {t}."),
            (phrase(rng, ("What color is the {t}?", "Which color is {p}'s {t}?"), p=p, t=t), f"The {t} is {c}."),
        ])  # fmt: skip

    return _about(rng, "possession", text, [turn(i) for i in rng.sample(range(num), rng.randint(1, 2))])


def whereabouts(rng: Random) -> Exercise:
    """Where people live, or what their work is."""
    num = rng.randint(2, 3)
    people = _people(rng, num)
    city = rng.random() < 0.5
    values = rng.sample(CITIES if city else JOBS, num)
    verb = "lives in" if city else "is a"
    text = " ".join(f"{p} {verb} {v}." for p, v in zip(people, values, strict=True))
    of_person: tuple[str, ...] = ("What is {p}?", "What is {p}'s job?", "What does {p} do?")
    of_value: tuple[str, ...] = ("Who is a {v}?", "Who is the {v}?")
    if city:
        of_person = ("Where does {p} live?", "In which city does {p} live?")
        of_value = ("Who lives in {v}?", "Who is in {v}?")
    turns = []
    for i in rng.sample(range(num), rng.randint(1, 2)):
        question = phrase(rng, of_person if rng.random() < 0.6 else of_value, p=people[i], v=values[i])
        turns.append((question, f"{people[i]} {verb} {values[i]}."))
    return _about(rng, "whereabouts", text, turns)


def deduction(rng: Random) -> Exercise:
    """A rule about each of some kinds, applied to somebody of one of them."""
    num = rng.randint(2, 3)
    kinds, colors = rng.sample(ANIMALS, num), rng.sample(COLORS, num)
    if rng.random() < 0.2:
        kinds[0] = invented_word(rng, 1)
    name, i = person(rng), rng.randrange(num)
    rules = " ".join(f"Every {kind} is {color}." for kind, color in zip(kinds, colors, strict=True))
    text = f"{rules} {name} is a {kinds[i]}."
    question = phrase(rng, ("What color is {name}?", "Which color is {name}?", "What color has {name}?"), name=name)
    return Exercise(
        (f"deduction {text}",), ((f"{text} {question}", f"{name} is a {kinds[i]}, so {name} is {colors[i]}."),)
    )
