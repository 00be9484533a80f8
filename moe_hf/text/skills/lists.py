"""Skills of order: counting a list, sorting digits, walking through days and months, saying something again."""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.wordings import Wordings
from moe_hf.text.skills.words import ANIMALS, COLORS, THINGS, invented_word

_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()

_COUNT = Wordings(
    trained=(
        "How many (words|things|items) are (there|here|these|in this list|in the list): {w}?",
        "(Count|Can you count|Please count) (these|this|these words|the words|the things|the items): {w}.",
        "Count {w}.",
        "{w}: how many (words|things|items) (are there|are these|is that|are in this list)?",
        "How many (words|things|items) do you (see|count): {w}?",
        "(What is|Tell me|Give me) the number of (words|things|items) (in this list|here): {w}.",
        "(Count|Say|Do you know) how many (words|things|items) (there are|these are): {w}.",
        "I have {w}. How many (things|words|items) do I have?",
    ),
    new=(
        "Here is a list: {w}. How many (words|things|items) are in it?",
        "Tell me how many (words|things|items) there are: {w}.",
        "I want to know how many (things|words) these are: {w}.",
        "What is the number of these (words|things|items): {w}?",
        "Look at this list and count the (words|things|items): {w}.",
    ),
)
_SORT = Wordings(
    trained=(
        "Sort (these numbers|these|the numbers|this list): {d}.",
        "(Sort|Order|Can you sort|Please sort|I want to sort) {d}.",
        "(Put|Bring|Arrange) (these|these numbers|the numbers) in order: {d}.",
        "(Put|Bring) {d} in order.",
        "Sort (|the numbers |these )from (small to big|low to high|smallest to largest|smallest to biggest): {d}.",
        "(Sort|Put|Order) {d} from (small to big|low to high|smallest to largest|smallest to biggest).",
        "(Sort|Put|Order) (these|these numbers|the numbers) in ascending order: {d}.",
        "(What is|Tell me|Give me) the (right order|order) of {d}.",
        "{d}: (sort|sort these|put these in order|what is the right order?)",
    ),
    new=(
        "(Arrange|Put|Sort) (|the numbers ){d} in ascending order.",
        "(Arrange|Bring) these numbers from (small to big|low to high|smallest to largest): {d}.",
        "I have the numbers {d}. (Sort them|Put them in order).",
        "Give me {d} (in order|in ascending order|from low to high).",
        "Can you (put|bring|arrange) {d} in (|the right )order?",
    ),
)
_STEP = Wordings(
    trained=(
        "(What|Which) {u} (comes|is|is it|will it be) {n} {us} {way} {start}?",
        "(Tell me|Name|Give me|What is) the {u} {n} {us} {way} {start}.",
        "{n} {us} {way} {start}(| is what {u}| is which {u}| is what)?",
        "(Do you know|Tell me|Can you tell me) (what|which) {u} (is|comes) {n} {us} {way} {start}?",
        "If you go {n} {us} {way} {start}, (what|which) {u} (is that|is it)?",
    ),
    new=(
        "I want to know (the|which|what) {u} {n} {us} {way} {start}.",
        "What is {n} {us} {way} {start}?",
        "The {u} {n} {us} {way} {start}(| is)?",
        "{n} {us} {way} {start}, (what|which) {u} (is that|is it|comes)?",
    ),
)
_STEP_ON = Wordings(
    trained=(
        "(Today is|It is|Now it is|If it is|If today is) {start}(.|,) (what|which) {u} (is it|will it be|comes) in "
        "{n} {us}?",
        "(What|Which) {u} (is|is it|will it be) {n} {us} (from|later than) {start}?",
        "(Start|Begin) (at|with) {start} and go {n} {us} on.",
    ),
    new=(
        "(What|Which) {u} (is it|will it be) in {n} {us} if (today|it) is {start}?",
        "{start} and {n} {us} later: (what|which) {u} is it?",
    ),
)
_STEP_BACK = Wordings(
    trained=(
        "(Today is|It is|Now it is|If it is|If today is) {start}(.|,) (what|which) {u} was it {n} {us} ago?",
        "(Start|Begin) (at|with) {start} and go {n} {us} back.",
    ),
    new=(
        "(What|Which) {u} was it {n} {us} ago if (today|it) is {start}?",
        "Go back {n} {us} from {start}: (what|which) {u} is it?",
    ),
)
_SAY = Wordings(
    trained=(
        "(Say|Repeat|Echo|Copy|Write)(|:) {t}",
        "(Say|Repeat|Copy|Write) (this|the words|after me|again|these words): {t}",
        "(Please|Can you|Could you) (say|repeat|copy) {t}",
        "(Please|Can you|You must) (say|repeat|write)(| this): {t}",
    ),
    new=(
        "Say it after me: {t}",
        "I want you to repeat(| this): {t}",
        "Now (say|repeat|write) the words {t}",
        "Could you (say|repeat) after me: {t}",
        "Tell me these words again: {t}",
    ),
    room="before",
)


def _listed(rng: Random, words: list[str]) -> str:
    """The words as a list: with commas, with an "and" before the last, or with blanks."""
    draw = rng.random()
    if draw < 0.7:
        return ", ".join(words)
    return " ".join(words) if draw < 0.76 else f"{', '.join(words[:-1])} and {words[-1]}"


def counting(rng: Random, new: bool = False) -> Exercise:
    """How many words a list has."""
    words = rng.sample(rng.choice([THINGS, ANIMALS, COLORS]), k=rng.randint(2, 7))
    steps = " ".join(f"{i} {word}" for i, word in enumerate(words, 1))
    question = phrase(rng, _COUNT, new, w=_listed(rng, words))
    return Exercise((f"counting {' '.join(words)}",), ((question, f"{steps}, so {len(words)}."),))


def sorting(rng: Random, new: bool = False) -> Exercise:
    """Different digits from small to big."""
    digits = rng.sample(range(10), k=rng.randint(3, 6))
    question = phrase(rng, _SORT, new, d=_listed(rng, [str(digit) for digit in digits]))
    answer = ", ".join(map(str, sorted(digits))) + "."
    return Exercise((f"sort {digits}",), ((question, answer),))


def calendar(rng: Random, new: bool = False) -> Exercise:
    """The day or month that lies 1 to 6 steps after or before another."""
    names, unit = (_DAYS, "day") if rng.random() < 0.5 else (_MONTHS, "month")
    start, steps = rng.randrange(len(names)), rng.randint(1, 6)
    after = rng.random() < 0.5
    path = [names[(start + (i if after else -i)) % len(names)] for i in range(1, steps + 1)]
    wordings = _STEP if rng.random() < 0.8 else _STEP_ON if after else _STEP_BACK
    question = phrase(
        rng,
        wordings,
        new,
        u=unit,
        us=unit + "s" * (steps > 1),
        n=steps,
        way="after" if after else "before",
        start=names[start],
    )
    walk = " ".join(f"{i} {name}" for i, name in enumerate(path, 1))
    return Exercise((f"calendar {names[start]} {steps} {after}",), ((question, f"{walk}, so {path[-1]}."),))


def repetition(rng: Random, new: bool = False) -> Exercise:
    """Some words said again."""
    pools = [*THINGS, *ANIMALS, *COLORS]
    words = [rng.choice(pools) if rng.random() < 0.85 else invented_word(rng) for _ in range(rng.randint(1, 6))]
    text = " ".join(words)
    return Exercise((f"repeat {text}",), ((phrase(rng, _SAY, new, t=text), text),))
