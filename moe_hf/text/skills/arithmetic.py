"""Skills of number: sums, differences and products digit by digit, comparison, parity, word problems.

The answers spell out every digit and carry. A small model can't do 47+38 in one step, but it learns the table of digits
and the routine, and then does sums that it has never seen.
"""

from random import Random

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.wordings import Wordings
from moe_hf.text.skills.words import THINGS, person

_ADD = Wordings(
    trained=(
        "(What is|What's|How much is) {a} (+|plus|and) {b}?",
        "(What is|What's) {a}+{b}?",
        "{a} + {b}(| =| = ?)",
        "{a}+{b}(|=|=?)",
        "{a} plus {b}(|?)",
        "(Add|Add up|Sum up|Add together) {a} and {b}.",
        "(Calculate|Compute|Work out|Solve|Find) {a} (+|plus) {b}.",
        "(What is|What's|Tell me|Calculate|Give me|Find) the (sum|total) of {a} and {b}.",
        "(What|How much) (do you get|do I get|is it) (if|when) (you|I) add {a} (and|to) {b}?",
        "(Can you|Could you|I want to|I need to) add {a} (and|to) {b}.",
        "How much (do|does) {a} and {b} make?",
        "{a} and {b} (together|in total)?",
    ),
    new=(
        "What does {a} plus {b} (equal|make)?",
        "The (sum|total) of {a} and {b}(| is)?",
        "Do you know how much {a} (+|plus) {b} is?",
        "If (you|I) add {a} and {b}, what (do you get|is the answer)?",
        "How much is it in total, {a} and {b}?",
        "I have {a} plus {b}, what is the answer?",
    ),
)
_SUBTRACT = Wordings(
    trained=(
        "(What is|What's|How much is) {a} (-|minus|take away|less) {b}?",
        "(What is|What's) {a}-{b}?",
        "{a} - {b}(| =| = ?)",
        "{a}-{b}(|=|=?)",
        "{a} minus {b}(|?)",
        "(Subtract|Take away|Take) {b} from {a}.",
        "(Calculate|Compute|Work out|Solve|Find) {a} (-|minus) {b}.",
        "(What is|What's|Tell me|Calculate|Give me|Find) the difference (between|of) {a} and {b}.",
        "What does {a} minus {b} (equal|make)?",
        "(What|How much) (do you get|do I get|is left) (if|when) (you|I) (take|subtract) {b} from {a}?",
        "(Can you|Could you|I want to|I need to) (take|subtract) {b} from {a}.",
        "I have {a} minus {b}, what is the (answer|result)?",
    ),
    new=(
        "The difference (between|of) {a} and {b}(| is)?",
        "Do you know how much {a} (-|minus) {b} is?",
        "If (you|I) (take|subtract) {b} from {a}, what (do you get|is the answer|is left)?",
        "How much is left of {a} when I take away {b}?",
        "From {a} (take|take away|subtract) {b}.",
    ),
)
_MULTIPLY = Wordings(
    trained=(
        "(What is|What's|How much is) {a} (*|x|times|multiplied by) {b}?",
        "(What is|What's) {a}*{b}?",
        "{a} (*|x) {b}(| =| = ?)",
        "{a}(*|x){b}(|=|=?)",
        "{a} times {b}(|?)",
        "Multiply {a} (by|with|and) {b}.",
        "(Calculate|Compute|Work out|Solve|Find) {a} (*|times) {b}.",
        "(What is|What's|Tell me|Calculate|Give me|Find) the product of {a} and {b}.",
        "Do you know how much {a} (*|times) {b} is?",
        "If (you|I) multiply {a} by {b}, what (do you get|is the answer|is the result)?",
        "(Can you|Could you|I want to|I need to) multiply {a} by {b}.",
    ),
    new=(
        "The product of {a} and {b}(| is)?",
        "What does {a} times {b} (equal|make)?",
        "(What|How much) (do you get|do I get|is it) when (you|I) multiply {a} (by|and) {b}?",
        "I have {a} times {b}, what is the (answer|result)?",
        "How much does {a} times {b} make?",
    ),
)
_COMPARE = Wordings(
    trained=(
        "(Which|Which one|Which number|What) is {w}(,|:) {a} or {b}?",
        "{a} or {b}, (what|which|which one|which number) is {w}?",
        "Which is the {w} (number|one)(,|:) {a} or {b}?",
        "(Which|Which one) of {a} and {b} is {w}?",
        "(Is|What about) {a} or {b} {w}?",
        "Tell me (which|which one|which number) is {w}, {a} or {b}.",
        "(Find|Give me|Name|Tell me) the {w} (number|one): {a} or {b}.",
        "What is the {s} of {a} and {b}?",
        "Which is {s}, {a} or {b}?",
        "(Find|Give me|Name|Tell me) the {s} of {a} and {b}.",
        "{w}: {a} or {b}?",
        "If (you|I) have {a} and {b}, which (is|one is) {w}?",
    ),
    new=(
        "Of {a} and {b}, which (one|number) is {w}?",
        "Do you know which (|one|number) is {w}, {a} or {b}?",
        "I have {a} and {b}. Which one is {w}?",
        "Between {a} and {b}, which is {w}?",
        "What is {s}: {a} or {b}?",
        "Can you (tell me|find) the {s} number, {a} or {b}?",
    ),
)
# What people call the two ends, and the word of the answer.
_ENDS = {
    "larger": ("larger larger bigger greater higher more", "largest biggest greatest highest"),
    "smaller": ("smaller smaller less lower", "smallest lowest least"),
}
_PARITY = Wordings(
    trained=(
        "Is (|the number ){n} (even or odd|odd or even)?",
        "{n}: (even or odd|odd or even)?",
        "(Even or odd|Odd or even): {n}?",
        "{n} is (even or odd|odd or even)?",
        "(Tell me|Do you know|Can you tell me|I want to know) (if|whether) {n} is (even|odd|even or odd|odd or even).",
        "Is {n} (even|odd|an even number|an odd number)?",
        "What is {n}, (even or odd|odd or even)?",
        "(Find out|Say) (if|whether) the number {n} is (even|odd).",
    ),
    new=(
        "I have the number {n}. Is it (even or odd|odd or even)?",
        "What about {n}, is it (even|odd) or not?",
        "Would you say {n} is (even|odd|even or odd)?",
        "Which is it for {n}: (even or odd|odd or even)?",
        "{n} is (an even|an odd) number, right?",
        "Here is {n}. (Even or odd|Odd or even)?",
    ),
)
_GAIN = Wordings(
    trained=(
        "{name} has {a} {thing} and (gets|buys|finds|wins|takes) {b} more. How many {thing} does {name} have (now|)?",
        "{name} has {a} {thing}. {name} (gets|buys|finds|wins) {b} more. How many {thing} does {name} have (now|)?",
        "There are {a} {thing} in a (box|bag). {name} (puts in|adds) {b} more. How many {thing} are (there|there now)?",
        "{name} had {a} {thing} and (got|bought|found) {b} more. How many (|{thing} )does {name} have now?",
        "I have {a} {thing} and (get|buy|find) {b} more. How many (|{thing} )do I have (now|)?",
        "If (I|you) have {a} {thing} and (get|buy|add) {b} more, how many {thing} (are there|is that)?",
        "(There are|We have) {a} {thing}. Then {b} more (come|are added). How many {thing} (are there|do we have) now?",
    ),
    new=(
        "How many {thing} does {name} have, if {name} had {a} and (gets|buys|finds) {b} more?",
        "{name} (finds|buys|gets) {a} {thing} and then {b} more. How many is that in total?",
        "There are {a} {thing} in my bag. I (add|put in) {b} more. How many do I have?",
        "You have {a} {thing} and you (get|find) {b} more. How many {thing} do you have now?",
    ),
)
_LOSS = Wordings(
    trained=(
        "{name} has {a} {thing} and (loses|sells|gives away|uses) {b}. How many {thing} does {name} have (now|left|)?",
        "{name} has {a} {thing}. {name} (gives away|loses|sells) {b}. How many {thing} (are left|does {name} have "
        "left)?",
        "There are {a} {thing} in a (box|bag). {name} takes out {b}. How many {thing} are (there|left|there now)?",
        "{name} had {a} {thing} and (lost|sold|gave away) {b}. How many (|{thing} )does {name} have (now|left)?",
        "I have {a} {thing} and (lose|sell|give away) {b}. How many (|{thing} )do I have (now|left)?",
        "If (I|you) have {a} {thing} and (lose|sell|give away) {b}, how many {thing} (are there|are left)?",
        "(There are|We have) {a} {thing}. Then {b} (are lost|are sold|go away). How many {thing} (are left|do we "
        "have) now?",
    ),
    new=(
        "How many {thing} does {name} have, if {name} had {a} and (loses|sells|gives away) {b}?",
        "{name} (loses|sells) {b} of {a} {thing}. How many are left?",
        "There are {a} {thing} in my bag. I take out {b}. How many do I have?",
        "You have {a} {thing} and you (lose|sell) {b}. How many {thing} do you have now?",
    ),
)


def sum_steps(a: int, b: int) -> str:
    """The written addition of two whole numbers, lowest digit first.

    >>> sum_steps(47, 38)
    '7+8=15, 4+3+1=8, so 85'
    """
    steps: list[str] = []
    carry, result = 0, a + b
    while a or b or not steps:
        # A number whose digits are used up is left out; in the first step both stand, a 0 too.
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
    # First how many digits: drawn evenly, nearly all numbers would be long ones.
    return rng.randrange(10 ** rng.randint(1, most_digits))


def addition(rng: Random, new: bool = False) -> Exercise:
    """A sum of two numbers below 100."""
    a, b = rng.randrange(100), rng.randrange(100)
    return Exercise((sum_key(a, b),), ((phrase(rng, _ADD, new, a=a, b=b), sum_steps(a, b) + "."),))


def subtraction(rng: Random, new: bool = False) -> Exercise:
    """A difference of two numbers below 100, never negative."""
    b, a = sorted((rng.randrange(100), rng.randrange(100)))
    return Exercise((f"subtract {a} {b}",), ((phrase(rng, _SUBTRACT, new, a=a, b=b), difference_steps(a, b) + "."),))


def multiplication(rng: Random, new: bool = False) -> Exercise:
    """A product of a number below 100 and a digit from 2 to 9."""
    a, b = _natural(rng, 2), rng.randint(2, 9)
    return Exercise((f"multiply {a} {b}",), ((phrase(rng, _MULTIPLY, new, a=a, b=b), product_steps(a, b) + "."),))


def comparison(rng: Random, new: bool = False) -> Exercise:
    """The larger or smaller of two different numbers from 10 to 99, by their digits from the left."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    while a == b:
        b = rng.randint(10, 99)
    word, winner = ("larger", max(a, b)) if rng.random() < 0.5 else ("smaller", min(a, b))
    which, most = (rng.choice(words.split()) for words in _ENDS[word])
    question = phrase(rng, _COMPARE, new, w=which, s=most, a=a, b=b)
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


def parity(rng: Random, new: bool = False) -> Exercise:
    """Whether a number below 10000 is even or odd."""
    number = _natural(rng, 4)
    word = "odd" if number % 2 else "even"
    return Exercise(
        (f"parity {number}",),
        ((phrase(rng, _PARITY, new, n=number), f"{number} ends in {number % 10}, so it is {word}."),),
    )


def word_problem(rng: Random, new: bool = False) -> Exercise:
    """A little story with a sum or a difference in it."""
    name, thing = person(rng), rng.choice(THINGS)
    thing += "es" if thing in ("box", "brush") else "s"
    b, a = sorted((rng.randint(2, 60), rng.randint(2, 60)))
    if rng.random() < 0.5:
        wordings, sign = _GAIN, "+"
        key, steps = sum_key(a, b), sum_steps(a, b)
    else:
        wordings, sign = _LOSS, "-"
        key, steps = f"subtract {a} {b}", difference_steps(a, b)
    question = phrase(rng, wordings, new, name=name, a=a, b=b, thing=thing)
    return Exercise((key,), ((question, f"{a}{sign}{b}: {steps} {thing}."),))
