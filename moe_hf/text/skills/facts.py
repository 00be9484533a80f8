"""Skills of fact: small tables of knowledge, asked in several ways, some of which training never sees."""

from random import Random

from moe_hf.text.skills.skill import Exercise, fact_exercise

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


def capital(rng: Random) -> Exercise:
    """The capital of a country, or the country of a capital."""
    country, city = rng.choice(sorted(CAPITALS.items()))
    if rng.random() < 0.7:
        templates: tuple[str, ...] = (
            "What is the capital of {x}?",
            "What's the capital of {x}?",
            "Which city is the capital of {x}?",
            "Tell me the capital of {x}.",
            "Name the capital of {x}.",
            "Capital of {x}?",
        )
        return fact_exercise(rng, "capital", country, templates, f"The capital of {country} is {city}.", x=country)
    templates = (
        "{x} is the capital of which country?",
        "Which country has the capital {x}?",
        "In which country is {x}?",
        "Where is {x}?",
    )
    return fact_exercise(rng, "country", city, templates, f"{city} is in {country}.", x=city)


def opposite(rng: Random) -> Exercise:
    """The opposite of a word, in either direction."""
    pair = list(rng.choice(sorted(OPPOSITES.items())))
    rng.shuffle(pair)
    word, other = pair
    templates = (
        "What is the opposite of {x}?",
        "What's the opposite of {x}?",
        "Tell me the opposite of {x}.",
        "Which word is the opposite of {x}?",
        "The opposite of {x}?",
        "Do you know the opposite of {x}?",
    )
    return fact_exercise(rng, "opposite", word, templates, f"The opposite of {word} is {other}.", x=word)


def sound(rng: Random) -> Exercise:
    """What an animal says, or which animal says so."""
    animal, noise = rng.choice(sorted(SOUNDS.items()))
    if rng.random() < 0.7:
        templates: tuple[str, ...] = (
            "What does a {x} say?",
            "What sound does a {x} make?",
            "Which sound does a {x} make?",
            "What does the {x} say?",
            "How does a {x} sound?",
        )
        return fact_exercise(rng, "sound", animal, templates, f"A {animal} says {noise}.", x=animal)
    templates = ("Which animal says {x}?", "What animal says {x}?", "Who says {x}?", "Which animal makes {x}?")
    return fact_exercise(rng, "animal", noise, templates, f"A {animal} says {noise}.", x=noise)


def thing_color(rng: Random) -> Exercise:
    """The color of a well-known thing."""
    thing, color = rng.choice(sorted(THING_COLORS.items()))
    templates = (
        "What color is {x}?",
        "What is the color of {x}?",
        "Which color is {x}?",
        "What color does {x} have?",
        "Tell me the color of {x}.",
    )
    return fact_exercise(rng, "color", thing, templates, f"It is {color}.", x=thing)


def category(rng: Random) -> Exercise:
    """What kind of thing a word names."""
    kind = rng.choice(sorted(CATEGORIES))
    word = rng.choice(CATEGORIES[kind])
    templates = ("What is {x}?", "What kind of thing is {x}?", "What sort of thing is {x}?", "Tell me what {x} is.",
                 "Is {x} an animal, a fruit or something else?")  # fmt: skip
    return fact_exercise(rng, "category", word, templates, f"It is {kind}.", x=word)
