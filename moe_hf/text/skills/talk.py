"""Skills of talk: remembering what was said, the name in a system message, stories."""

from random import Random
from typing import NamedTuple

from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.small_talk import ASKED_NAME, MODEL_NAME, small_talk
from moe_hf.text.skills.wordings import Wordings
from moe_hf.text.skills.words import ANIMALS, CITIES, COLORS, invented_word, person


class _Remembered(NamedTuple):
    """Something that people say about themselves: how, the reply, how it is asked for, the answer."""

    tell: Wordings
    reply: str
    ask: Wordings
    answer: str


_REMEMBERED = (
    _Remembered(
        Wordings(
            ("My name is {w}.", "I am called {w}.", "Call me {w}.", "(Hi|Hello), (my name is|I am|I'm) {w}.",
             "I am {w}."),
            ("You can call me {w}.", "(Hey|Good day), my name is {w}.", "The name is {w}."),
        ),
        "Nice to meet you, {w}!",
        Wordings(
            ("(What is|What's|Tell me) my name?", "Who am I?", "Do you (know|remember) my name?",
             "What (did I say|was) my name?", "(Say|Give me) my name."),
            ("Do you (know|remember) who I am?", "(Tell me|Say) who I am.", "My name is what?", "And what is my name?"),
        ),
        "Your name is {w}.",
    ),
    _Remembered(
        Wordings(
            ("I live in {w}.", "My home is in {w}.", "I (come|am) from {w}.", "My city is {w}."),
            ("My house is in {w}.", "I have my home in {w}.", "{w} is my city."),
        ),
        "{w} must be nice.",
        Wordings(
            ("Where do I (live|come from)?", "(What is|What's) my city?", "Where is my home?",
             "(Tell me|Say) where I live.",
             "In which city do I live?", "Where am I from?"),
            ("Do you (know|remember) where I live?", "(Which|What) is my home?", "What city do I live in?"),
        ),
        "You live in {w}.",
    ),
    _Remembered(
        Wordings(
            ("I (have|own|have got) a {w}.", "My pet is a {w}.", "I have a {w} as a pet.", "At home I have a {w}."),
            ("There is a {w} in my home.", "A {w} is my pet.", "I have a pet, a {w}."),
        ),
        "A {w}? How nice!",
        Wordings(
            ("(What|Which) (pet|animal) do I have?", "(What is|What's) my (pet|animal)?",
             "(Tell me|Say) what pet I have.",
             "Do you (know|remember) my pet?"),
            ("Do you (know|remember) (what|which) pet I have?", "My pet is what?", "What animal is my pet?"),
        ),
        "You have a {w}.",
    ),
    _Remembered(
        Wordings(
            ("My (favorite|favourite) (color|colour) is {w}.", "I like the (color|colour) {w}.", "I (love|like) {w}."),
            ("{w} is my (favorite|favourite) (color|colour).", "The color I (like|love) is {w}.", "I like {w} most."),
        ),
        "{w} is a nice color.",
        Wordings(
            ("(What is|What's) my (favorite|favourite) (color|colour)?",
             "(Which|What) (color|colour) do I (like|love)?",
             "(Tell me|Say) my favorite color.", "Do you (know|remember) my favorite color?"),
            ("Do you (know|remember) (what|which) color I like?", "My favorite color is what?",
             "Which color is my favorite?"),
        ),
        "You like {w}.",
    ),
)  # fmt: skip


def remembering(rng: Random, new: bool = False) -> Exercise:
    """Something that the user says about themself, asked for later, at times after other talk.

    Who has said a name may also ask for the model's, which is another.
    """
    number = rng.randrange(len(_REMEMBERED))
    of = _REMEMBERED[number]
    word = (
        person(rng, invented=0.4),
        rng.choice([*CITIES, invented_word(rng).capitalize()]),
        rng.choice(ANIMALS),
        rng.choice(COLORS),
    )[number]
    turns = [(phrase(rng, of.tell, new, w=word), _capitalised(of.reply.format(w=word)))]
    between = [small_talk(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
    turns += [turn for exercise in between for turn in exercise.turns]
    if number == 0 and rng.random() < 0.4:
        turns.append((phrase(rng, ASKED_NAME, new), MODEL_NAME))
        if rng.random() < 0.5:
            turns.append((phrase(rng, of.ask, new), of.answer.format(w=word)))
    else:
        turns.append((phrase(rng, of.ask, new), of.answer.format(w=word)))
    # The talk in between is shown as well, so none of it may be held out.
    keys = (f"remember {number} {word}", *(key for exercise in between for key in exercise.keys))
    return Exercise(keys, tuple(turns))


_HOME = Wordings(
    trained=("Where do you live?", "Where are you from?", "(Tell me|Say) where you live.", "Where is your home?"),
    new=("Do you know where you live?", "Where is it that you live?", "(What|Which) city do you live in?"),
)
_SYSTEMS = (
    "Your name is {name}. You live in {city}.",
    "You are {name} from {city}.",
    "You are {name}. Your home is {city}.",
)


def persona(rng: Random, new: bool = False) -> Exercise:
    """The name and home that a system message gives the model, which are not those of the user."""
    name, city = person(rng), rng.choice(CITIES)
    system = rng.choice(_SYSTEMS).format(name=name, city=city)
    turns = []
    if rng.random() < 0.3:
        user = person(rng)
        turns.append((phrase(rng, _REMEMBERED[0].tell, new, w=user), f"Nice to meet you, {user}!"))
    if rng.random() < 0.6:
        turns.append((phrase(rng, ASKED_NAME, new), f"My name is {name}."))
    else:
        turns.append((phrase(rng, _HOME, new), f"I live in {city}."))
    return Exercise((f"persona {name} {city}",), tuple(turns), system)


_FRIENDS = dict(zip(ANIMALS, ANIMALS[5:] + ANIMALS[:5], strict=True))
_PLACES = {
    "forest": ("lost its way", "showed it the path"),
    "river": ("could not swim", "built it a boat"),
    "garden": ("was hungry", "gave it an apple"),
    "city": ("was afraid of the cars", "held its hand"),
    "house": ("could not sleep", "sang it a song"),
    "mountain": ("was cold", "made it a fire"),
}
_STORY = Wordings(
    trained=(
        "(Tell me|Tell|Write|Write me|I want|Give me) a (|short |little )story (about|of|with) a {h} (and|in|at) a "
        "{p}.",
        "(Can you|Could you|Please) (tell|write) (|me )a story about a {h} (and|in) a {p}.",
        "(A|Another) story about a {h} (and|in) a {p}.",
        "Tell me about a {h} (and|in) a {p}.",
    ),
    new=(
        "Do you know a story (about|of) a {h} (and|in) a {p}?",
        "I want to hear about a {h} (and|in) a {p}.",
        "Could I hear a story about a {h} (and|in) a {p}?",
        "Make a story: a {h} in a {p}.",
    ),
)


def story(rng: Random, new: bool = False) -> Exercise:
    """A story about an animal at a place: the animal decides the friend, the place decides what happens."""
    hero, place = rng.choice(ANIMALS), rng.choice(sorted(_PLACES))
    trouble, help_ = _PLACES[place]
    friend = _FRIENDS[hero]
    answer = (
        f"Once upon a time there was a little {hero} in a {place}. The {hero} {trouble}. "
        f"Then a {friend} came and {help_}. The {hero} and the {friend} were friends for ever."
    )
    return Exercise((f"story {hero} {place}",), ((phrase(rng, _STORY, new, h=hero, p=place), answer),))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
