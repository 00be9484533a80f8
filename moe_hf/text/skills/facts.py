"""Skills of fact: small tables of knowledge, asked in several ways, some of which training never sees."""

from random import Random

from moe_hf.text.skills.skill import Exercise, fact_exercise
from moe_hf.text.skills.wordings import Wordings

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "England": "London", "Germany": "Berlin", "Spain": "Madrid", "Japan": "Tokyo",
    "Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima", "Austria": "Vienna", "Greece": "Athens", "India": "Delhi",
    "China": "Beijing", "Russia": "Moscow", "Poland": "Warsaw", "Portugal": "Lisbon", "Sweden": "Stockholm",
    "Ireland": "Dublin", "Canada": "Ottawa", "Cuba": "Havana", "Kenya": "Nairobi", "Turkey": "Ankara",
    "Finland": "Helsinki", "Hungary": "Budapest",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "happy": "sad", "old": "new", "day": "night",
    "black": "white", "full": "empty", "hard": "soft", "light": "dark", "rich": "poor", "wet": "dry", "high": "low",
    "open": "closed", "left": "right", "good": "bad", "early": "late", "loud": "quiet", "clean": "dirty",
    "strong": "weak", "long": "short", "true": "false", "first": "last",
}  # fmt: skip
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "horse": "neigh", "pig": "oink", "sheep": "baa", "duck": "quack",
    "lion": "roar", "frog": "ribbit", "bee": "buzz", "wolf": "howl", "hen": "cluck", "mouse": "squeak", "snake": "hiss",
}  # fmt: skip
THING_COLORS = {
    "grass": "green", "snow": "white", "blood": "red", "coal": "black", "milk": "white", "a banana": "yellow",
    "the sky": "blue", "a carrot": "orange", "chocolate": "brown", "a lemon": "yellow", "a tomato": "red",
    "the sun": "yellow", "the sea": "blue", "a frog": "green", "a pig": "pink", "the night": "black",
}  # fmt: skip
CATEGORIES = {
    "an animal": "dog cat cow horse lion frog wolf sheep".split(),
    "a fruit": "apple pear plum banana cherry grape lemon".split(),
    "a color": "red blue green yellow pink brown".split(),
    "a city": "Paris Rome London Tokyo Cairo Oslo".split(),
    "a tool": "hammer saw drill shovel pliers wrench".split(),
    "a vehicle": "car bus train truck bike plane".split(),
}
_PLURALS = {"mouse": "mice", "wolf": "wolves", "sheep": "sheep", "tomato": "tomatoes"}

CAPITAL_OF = Wordings(
    trained=(
        "(What is|What's|Tell me|Name|Give me|Do you know) the capital (of|city of) {x}?",
        "(Which|What) city is the capital of {x}?",
        "(|The )capital of {x}?",
        "{x}'s capital?",
        "(What is|What's|Name|Tell me) {x}'s capital(| city)?",
        "{x} has (which|what) capital(| city)?",
        "(Which|What) capital does {x} have?",
        "{x}, what is the capital(| there)?",
        "I (want|need) to know {x}'s capital.",
    ),
    new=(
        "I (want|need) to know the capital of {x}.",
        "The capital of {x} is (what|which city)?",
        "Can you (name|tell me) the capital(| city) of {x}?",
        "(Which|What) city is {x}'s capital?",
        "What is the name of the capital (of|in) {x}?",
    ),
)
_COUNTRY_OF = Wordings(
    trained=(
        "{x} is the capital of (which|what) country?",
        "(Which|What) country has the capital {x}?",
        "In (which|what) country is {x}?",
        "(Which|What) country is {x} in?",
        "Where is {x}?",
        "{x} is in (which|what) country?",
        "(Tell me|Do you know|I want to know) where {x} is.",
        "{x}, where is (it|that)?",
        "(Name|Tell me) the country of {x}.",
    ),
    new=(
        "(Tell me|Do you know) (which|what) country {x} is in.",
        "What is the country of {x}?",
        "Where can I find {x}?",
        "{x} is the capital of what?",
        "The city {x}, where is it?",
    ),
)
OPPOSITE_OF = Wordings(
    trained=(
        "(What is|What's|Tell me|Give me|Name|Do you know|Find) the opposite of {x}?",
        "(Which|What) word is the opposite of {x}?",
        "(|The )opposite of {x}?",
        "(Which|What) is the opposite word of {x}?",
        "{x} is the opposite of (what|which word)?",
        "{x}, what is the opposite?",
        "(What is|Tell me) the antonym of {x}.",
        "What's {x}'s opposite?",
        "{x}: (opposite|the opposite)?",
    ),
    new=(
        "I (want|need) (|to know )the opposite of {x}.",
        "The opposite of {x} is (what|which word)?",
        "Can you (name|tell me|give me) the opposite of {x}?",
        "(Say|Find) a word that is the opposite of {x}.",
        "Which word would be the opposite of {x}?",
    ),
)
SOUND_OF = Wordings(
    trained=(
        "What does (a|the) {x} say?",
        "What do {xs} say?",
        "(What|Which) (sound|noise) does (a|the) {x} make?",
        "(What|Which) (sound|noise) do {xs} make?",
        "How (does a {x}|do {xs}) sound?",
        "(Tell me|Do you know) what a {x} says.",
        "What is the (sound|noise) of a {x}?",
        "{x}, (what|which) (sound|noise) does it make?",
        "(Say|Make) the sound of a {x}.",
        "{x} (sound|noise)?",
    ),
    new=(
        "A {x} says what?",
        "Can you tell me what (a {x} says|{xs} say)?",
        "The (sound|noise) of a {x}(| is)?",
        "I want to know (what|which) (sound|noise) a {x} makes.",
        "If you hear a {x}, what does it say?",
    ),
)
_SOUND_MAKER = Wordings(
    trained=(
        "(Which|What) animal (says|makes|goes) {x}?",
        "(Who|What) says {x}?",
        "(Which|What) animal makes the (sound|noise) {x}?",
        "(Tell me|Do you know) (which|what) animal says {x}.",
        "{x}, (which|what) animal is that?",
        "{x} is the (sound|noise) of (which|what) animal?",
    ),
    new=(
        "I hear {x}. (Which|What) animal is (that|it)?",
        "Can you tell me (which|what) animal says {x}?",
        "{x} is what (which|what) animal says?",
        "Name the animal that says {x}.",
        "{x}, who says that?",
    ),
)
COLOR_OF = Wordings(
    trained=(
        "(What|Which) (color|colour) {is} {x}?",
        "(What is|What's|Tell me|Name|Give me) the (color|colour) of {x}?",
        "(What|Which) (color|colour) {does} {x} have?",
        "(Do you know|I want to know) (what|which) (color|colour) {x} {is}.",
        "(|The )(color|colour) of {x}?",
        "{x} {is} what (color|colour)?",
        "In (what|which) (color|colour) {is} {x}?",
    ),
    new=(
        "(Tell me|Can you tell me) (what|which) (color|colour) {x} {is}.",
        "The (color|colour) of {x} is (what|which)?",
        "{x}, (what|which) (color|colour) is (that|it)?",
        "I want to know the (color|colour) of {x}.",
        "Do you know the (color|colour) of {x}?",
    ),
)
_KIND_OF = Wordings(
    trained=(
        "(What is|What's) {x}?",
        "(What|Which) (kind|sort|type) of thing is {x}?",
        "(Tell me|Do you know|I want to know) what {x} is.",
        "Is {x} an animal, a fruit or something else?",
        "{x} is what (kind|sort|type) of thing?",
        "{x}, what is (that|it)?",
        "What (kind|sort) of word is {x}?",
        "What would you call {x}?",
        "Is {x} (a tool|a fruit|an animal|a city|a color|a vehicle) or (a tool|a fruit|an animal|a city|a color|a "
        "vehicle)?",
    ),
    new=(
        "(Tell me|Do you know) what (kind|sort|type) of thing {x} is.",
        "{x}, what (kind|sort) of thing is (that|it)?",
        "{x} is a what?",
        "Can you tell me what {x} is?",
        "What is {x}, an animal, a tool or something else?",
    ),
)


def plural(word: str) -> str:
    """The plural of one of the words of the tables."""
    return _PLURALS.get(word, word + "s")


def capital(rng: Random, new: bool = False) -> Exercise:
    """The capital of a country, or the country of a capital."""
    country, city = rng.choice(sorted(CAPITALS.items()))
    if rng.random() < 0.7:
        answer = f"The capital of {country} is {city}."
        return fact_exercise(rng, "capital", country, CAPITAL_OF, new, answer, x=country)
    return fact_exercise(rng, "country", city, _COUNTRY_OF, new, f"{city} is in {country}.", x=city)


def opposite(rng: Random, new: bool = False) -> Exercise:
    """The opposite of a word, in either direction."""
    pair = list(rng.choice(sorted(OPPOSITES.items())))
    rng.shuffle(pair)
    word, other = pair
    answer = f"The opposite of {word} is {other}."
    return fact_exercise(rng, "opposite", word, OPPOSITE_OF, new, answer, x=word)


def sound(rng: Random, new: bool = False) -> Exercise:
    """What an animal says, or which animal says so."""
    animal, noise = rng.choice(sorted(SOUNDS.items()))
    answer = f"A {animal} says {noise}."
    if rng.random() < 0.7:
        return fact_exercise(rng, "sound", animal, SOUND_OF, new, answer, x=animal, xs=plural(animal))
    return fact_exercise(rng, "animal", noise, _SOUND_MAKER, new, answer, x=noise)


def thing_color(rng: Random, new: bool = False) -> Exercise:
    """The color of a well-known thing, or of all things of its kind."""
    thing, color = rng.choice(sorted(THING_COLORS.items()))
    name, verbs = thing, {"is": "is", "does": "does"}
    if thing.startswith("a "):
        name = rng.choice([thing, thing, plural(thing[2:]), f"the {thing[2:]}"])
    if name == plural(thing[2:]):
        verbs = {"is": "are", "does": "do"}
    return fact_exercise(rng, "color", thing, COLOR_OF, new, f"It is {color}.", x=name, **verbs)


def category(rng: Random, new: bool = False) -> Exercise:
    """What kind of thing a word names."""
    kind = rng.choice(sorted(CATEGORIES))
    word = name = rng.choice(CATEGORIES[kind])
    if kind not in ("a color", "a city") and word != "pliers" and rng.random() < 0.5:
        name = f"an {word}" if word[0] in "aeiou" else f"a {word}"
    return fact_exercise(rng, "category", word, _KIND_OF, new, f"It is {kind}.", x=name)
