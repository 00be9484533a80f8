"""Skills of number: sums, differences and products digit by digit, comparison, parity, word problems.

The answers spell out every digit and carry. A small model can't do 47+38 in one step, but it learns the table of digits
and the routine, and then does sums that it has never seen.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.words import THINGS, person

_ADD = (
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "{a} + {b} = ?",
    "{a}+{b}",
    "How much is {a} plus {b}?",
    "What's {a} plus {b}?",
    "Add {a} and {b}.",
    "Calculate {a} + {b}.",
)
_SUBTRACT = (
    "What is {a} - {b}?",
    "What is {a}-{b}?",
    "{a} - {b} = ?",
    "{a}-{b}",
    "How much is {a} minus {b}?",
    "What's {a} minus {b}?",
    "Subtract {b} from {a}.",
    "Calculate {a} - {b}.",
)
_MULTIPLY = (
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "{a} * {b} = ?",
    "{a}*{b}",
    "How much is {a} times {b}?",
    "What's {a} times {b}?",
    "Multiply {a} by {b}.",
    "Calculate {a} * {b}.",
)


def sum_steps(a: int, b: int) -> str:
    """The written addition of two whole numbers, lowest digit first.

    >>> sum_steps(47, 38)
    '7+8=15, 4+3+1=8, so 85'
    """
    steps: list[str] = []
    carry, result = 0, a + b
    while a or b or not steps:
        digits = [number % 10 for number, present in ((a, a or not steps), (b, b or not steps)) if present]
        digits += [carry] if carry else []
        total = sum(digits)
        steps.append("+".join(map(str, digits)) + (f"={total}" if len(digits) > 1 else ""))
        a, b, carry = a // 10, b // 10, total // 10
    return f"{', '.join(steps)}, so {result}"


def difference_steps(a: int, b: int) -> str:
    """The written subtraction of two numbers with 0 <= b <= a < 100, lowest digit first.

    >>> difference_steps(52, 17)
    '12-7=5, 4-1=3, so 35'
    """
    low, borrowed = a % 10, int(a % 10 < b % 10)
    steps = [f"{low + 10 * borrowed}-{b % 10}={low + 10 * borrowed - b % 10}"]
    if a >= 10:
        high = a // 10 - borrowed
        steps.append(f"{high}-{b // 10}={high - b // 10}" if b >= 10 else str(high))
    return f"{', '.join(steps)}, so {a - b}"


def product_steps(a: int, b: int) -> str:
    """The written multiplication of 0 <= a < 100 by one digit b, lowest digit first.

    >>> product_steps(87, 6)
    '7*6=42, 8*6=48, 48+4=52, so 522'
    """
    low = a % 10 * b
    steps = [f"{a % 10}*{b}={low}"]
    if a >= 10:
        high = a // 10 * b
        steps.append(f"{a // 10}*{b}={high}")
        if low >= 10:
            steps.append(f"{high}+{low // 10}={high + low // 10}")
    return f"{', '.join(steps)}, so {a * b}"


def sum_key(a: int, b: int) -> str:
    """The key of a sum, the same in either order and in every skill that shows it."""
    return f"add {min(a, b)} {max(a, b)}"


def _natural(rng: Random, most_digits: int) -> int:
    return rng.randrange(10 ** rng.randint(1, most_digits))


def addition(rng: Random) -> Exercise:
    """A sum of two numbers below 100."""
    a, b = rng.randrange(100), rng.randrange(100)
    return Exercise((sum_key(a, b),), ((phrase(rng, _ADD, a=a, b=b), sum_steps(a, b) + "."),))


def subtraction(rng: Random) -> Exercise:
    """A difference of two numbers below 100, never negative."""
    b, a = sorted((rng.randrange(100), rng.randrange(100)))
    return Exercise((f"subtract {a} {b}",), ((phrase(rng, _SUBTRACT, a=a, b=b), difference_steps(a, b) + "."),))


def multiplication(rng: Random) -> Exercise:
    """A product of a number below 100 and a digit from 2 to 9."""
    a, b = _natural(rng, 2), rng.randint(2, 9)
    return Exercise((f"multiply {a} {b}",), ((phrase(rng, _MULTIPLY, a=a, b=b), product_steps(a, b) + "."),))


def comparison(rng: Random) -> Exercise:
    """The larger or smaller of two different numbers from 10 to 99, by their digits from the left."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    while a == b:
        b = rng.randint(10, 99)
    word, winner = ("larger", max(a, b)) if rng.random() < 0.5 else ("smaller", min(a, b))
    templates = ("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?", "{a} or {b}, what is {w}?")
    question = phrase(rng, templates, w=word, a=a, b=b)
    key = f"compare {min(a, b)} {max(a, b)}"
    return Exercise((key,), ((question, f"{comparison_steps(a, b)}, so {winner} is {word}."),))


def comparison_steps(a: int, b: int) -> str:
    """How two different whole numbers of one length compare, digit by digit from the left.

    >>> comparison_steps(472, 483)
    '4=4, 7<8'
    """
    steps = []
    for x, y in zip(str(a), str(b), strict=True):
        steps.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    return ", ".join(steps)


def parity(rng: Random) -> Exercise:
    """Whether a number below 10000 is even or odd."""
    number = _natural(rng, 4)
    templates = ("Is {n} even or odd?", "Is {n} odd or even?", "Is the number {n} even or odd?", "{n}: even or odd?")
    word = "odd" if number % 2 else "even"
    return Exercise(
        (f"parity {number}",),
        ((phrase(rng, templates, n=number), f"{number} ends in {number % 10}, so it is {word}."),),
    )


def word_problem(rng: Random) -> Exercise:
    """A little story with a sum or a difference in it."""
    name, thing = person(rng), rng.choice(THINGS)
    thing += "es" if thing in ("box", "brush") else "s"
    b, a = sorted((rng.randint(2, 60), rng.randint(2, 60)))
    if rng.random() < 0.5:
        templates = (
            "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
            "{name} has {a} {thing}. {name} buys {b} more. How many {thing} does {name} have?",
            "There are {a} {thing} in a box. {name} puts in {b} more. How many {thing} are in the box?",
        )
        key, steps = sum_key(a, b), sum_steps(a, b)
        sign = "+"
    else:
        templates = (
            "{name} has {a} {thing} and loses {b}. How many {thing} does {name} have now?",
            "{name} has {a} {thing}. {name} gives away {b}. How many {thing} does {name} have left?",
            "There are {a} {thing} in a box. {name} takes out {b}. How many {thing} are in the box?",
        )
        key, steps = f"subtract {a} {b}", difference_steps(a, b)
        sign = "-"
    question = phrase(rng, templates, name=name, a=a, b=b, thing=thing)
    return Exercise((key,), ((question, f"{a}{sign}{b}: {steps} {thing}."),))
