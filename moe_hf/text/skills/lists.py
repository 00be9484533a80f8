"""Skills of order: counting a list, sorting digits, walking through days and months, saying something again."""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.words import ANIMALS, COLORS, THINGS, invented_word

_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()


def counting(rng: Random) -> Exercise:
    """How many words a list has."""
    words = rng.sample(rng.choice([THINGS, ANIMALS, COLORS]), k=rng.randint(2, 7))
    templates = (
        "How many words are there: {w}?",
        "How many things are in this list: {w}?",
        "Count these: {w}.",
        "Count the words: {w}.",
    )
    steps = " ".join(f"{i} {word}" for i, word in enumerate(words, 1))
    question = phrase(rng, templates, w=", ".join(words))
    return Exercise((f"counting {' '.join(words)}",), ((question, f"{steps}, so {len(words)}."),))


def sorting(rng: Random) -> Exercise:
    """Different digits from small to big."""
    digits = rng.sample(range(10), k=rng.randint(3, 6))
    templates = ("Sort these numbers: {d}.", "Sort {d}.", "Put these in order: {d}.", "Sort from small to big: {d}.")
    question = phrase(rng, templates, d=", ".join(map(str, digits)))
    answer = ", ".join(map(str, sorted(digits))) + "."
    return Exercise((f"sort {digits}",), ((question, answer),))


def calendar(rng: Random) -> Exercise:
    """The day or month that lies 1 to 6 steps after or before another."""
    names, unit = (_DAYS, "day") if rng.random() < 0.5 else (_MONTHS, "month")
    start, steps = rng.randrange(len(names)), rng.randint(1, 6)
    after = rng.random() < 0.5
    path = [names[(start + (i if after else -i)) % len(names)] for i in range(1, steps + 1)]
    templates = (
        "What {u} comes {n} {us} {way} {start}?",
        "Which {u} is {n} {us} {way} {start}?",
        "What {u} is it {n} {us} {way} {start}?",
    )
    question = phrase(
        rng,
        templates,
        u=unit,
        us=unit + "s" * (steps > 1),
        n=steps,
        way="after" if after else "before",
        start=names[start],
    )
    walk = " ".join(f"{i} {name}" for i, name in enumerate(path, 1))
    return Exercise((f"calendar {names[start]} {steps} {after}",), ((question, f"{walk}, so {path[-1]}."),))


def repetition(rng: Random) -> Exercise:
    """Some words said again."""
    pools = [*THINGS, *ANIMALS, *COLORS]
    words = [rng.choice(pools) if rng.random() < 0.85 else invented_word(rng) for _ in range(rng.randint(1, 6))]
    text = " ".join(words)
    templates = ("Say: {t}", "Repeat: {t}", "Say {t}", "Repeat after me: {t}", "Please say: {t}")
    return Exercise((f"repeat {text}",), ((phrase(rng, templates, t=text), text),))
