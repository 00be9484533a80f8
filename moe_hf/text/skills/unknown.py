"""The skill of not knowing: questions about all the world, which a model of this corpus should own up to."""

from random import Random
from typing import NamedTuple

from moe_hf.text.skills.facts import CAPITAL_OF, COLOR_OF, OPPOSITE_OF, SOUND_OF
from moe_hf.text.skills.skill import Exercise, phrase
from moe_hf.text.skills.wordings import Wordings
from moe_hf.text.skills.words import invented_word

UNKNOWN = "I don't know that."
NOT_TOLD = "I don't know, you have not told me."


class _Field(NamedTuple):
    """A field of knowledge: what is asked in it and how."""

    topics: tuple[str, ...]
    wordings: Wordings


def _topics(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_FIELDS = (
    _Field(
        _topics(
            "Hamlet, Faust, the Mona Lisa, Moby Dick, the Odyssey, Don Quixote, the telephone, penicillin, the light "
            "bulb, "
            "the radio, the Eiffel Tower, Dracula, Frankenstein, the Iliad, America, gravity, the steam engine, "
            "dynamite, "
            "electricity, the internet, Star Wars, Titanic, Harry Potter, the Bible, Romeo and Juliet, Macbeth, "
            "Ulysses, "
            "the wheel, paper, the compass, Australia, oxygen, the Ninth Symphony, Carmen, Guernica, Pinocchio, Peter "
            "Pan, "
            "the airplane, chess, football, Microsoft, the World Cup, the war, Wikipedia, radium, the vaccine, 1984, "
            "the pyramids"
        ),
        Wordings(
            trained=(
                "Who (wrote|painted|invented|discovered|built|made|directed|composed|designed|founded) {x}?",
                "(Tell me|Do you know) who (wrote|invented|discovered|made|built) {x}.",
                "When was {x} (written|invented|discovered|made|built|founded)?",
                "What is {x} about?",
                "{x} was (written|invented|painted|made|discovered) by (whom|who)?",
                "Who (won|played in|is the author of|is the inventor of|is in) {x}?",
                "In (which|what) year was {x} (made|invented|built)?",
            ),
            new=(
                "What is the name of the (man|person) who (made|wrote|invented|built) {x}?",
                "Can you tell me who (wrote|invented|discovered) {x}?",
                "By whom was {x} (made|written|invented)?",
                "Who was it that (invented|wrote|discovered) {x}?",
                "What do you know about {x}?",
            ),
        ),
    ),
    _Field(
        _topics(
            "the moon, Mars, Brazil, Mount Everest, the Nile, Texas, Chicago, New York, the Amazon, Jupiter, "
            "California, Mexico, "
            "Sahara, Africa, Argentina, the Alps, Venus, Saturn, the Pacific, Switzerland, Boston, Sydney, Hawaii, "
            "Iceland, "
            "Denmark, the Danube, Los Angeles, Florida, the Empire State Building, Loch Ness, a giraffe, a whale, an "
            "elephant, "
            "Pluto, the Great Wall, Manhattan, Barcelona, Munich, Vietnam, Nepal, Toronto, the Rhine, Antarctica, "
            "Belgium"
        ),
        Wordings(
            trained=(
                "How (far|big|high|tall|old|deep|wide|heavy|large|hot|cold|fast|far away) is {x}?",
                "How many people (live in|are in|are there in) {x}?",
                "What is the (height|size|population|distance|weight|history|age|president|language|area) of {x}?",
                "(Tell me|What do you know) about {x}.",
                "How (long does it take|do I get|can I get) to {x}?",
                "Is {x} (bigger|larger|older|farther) than {x}?",
                "How much does {x} (weigh|cost)?",
                "Who is the (president|king|queen|mayor) of {x}?",
                "What (language|money) do they (speak|use) in {x}?",
                "Have you (been|ever been) to {x}?",
            ),
            new=(
                "(Tell me|Do you know) how (far|big|high|old|heavy) {x} is.",
                "How large is the distance to {x}?",
                "How many (miles|days) is it to {x}?",
                "Are there (people|animals) (in|on) {x}?",
                "I want to know (something|more) about {x}.",
            ),
        ),
    ),
    _Field(
        _topics(
            "Napoleon, Einstein, Mozart, Shakespeare, Beethoven, Newton, Obama, Picasso, Goethe, Columbus, Cleopatra, "
            "Caesar, "
            "Lincoln, Gandhi, Darwin, Madonna, Elvis, Bach, Plato, Aristotle, Marie Curie, Galileo, Washington, "
            "Kennedy, "
            "Michael Jackson, Messi, Ronaldo, Taylor Swift, Elon Musk, Bill Gates, Socrates, Tolstoy, Kafka, Van "
            "Gogh, Rembrandt, "
            "Vivaldi, Chopin, Tesla, Edison, Buddha, Sherlock Holmes, Batman, Superman, Santa Claus"
        ),
        Wordings(
            trained=(
                "Who (is|was) {x}?",
                "When (was {x} born|did {x} die|did {x} live)?",
                "How old is {x}?",
                "Where (was {x} born|did {x} live|does {x} live|is {x} from)?",
                "What did {x} (do|write|invent|say|discover)?",
                "Tell me about {x}.",
                "(Is|Was) {x} (still |)(alive|dead|married|rich|famous)?",
                "Why is {x} famous?",
                "How did {x} die?",
            ),
            new=(
                "(Do you know|Tell me) who {x} (is|was).",
                "What is {x} known for?",
                "In (which|what) (year|city) was {x} born?",
                "Do you know {x}?",
                "What can you tell me about {x}?",
            ),
        ),
    ),
    _Field(
        _topics(
            "gravity, democracy, inflation, photosynthesis, a black hole, a volcano, an atom, rain, lightning, a "
            "computer, "
            "a neural network, the stock market, an earthquake, philosophy, happiness, love, a virus, the brain, a "
            "battery, "
            "a rainbow, bread, soup, pancakes, a pizza, a tornado, cancer, yoga, money, a magnet, thunder, ice, "
            "sleep, evolution, "
            "religion, a contract, taxes, bitcoin, poetry, a galaxy, a molecule, quantum physics, algebra, jazz, opera"
        ),
        Wordings(
            trained=(
                "What is {x} (made of|used for|good for)?",
                "(Why|How) (is|does|do) {x} (happen|work|exist|important)?",
                "(Explain|Describe|Define) {x}(| to me).",
                "How do (you|I|we) (make|get|cook|use|build|stop) {x}?",
                "What (causes|makes) {x}?",
                "What is the (meaning|reason|price|cause|definition|recipe) of {x}?",
                "Where does {x} come from?",
                "Is {x} (good|bad|dangerous|healthy|real)?",
                "What do you think (about|of) {x}?",
                "Why do (we|people) (need|like|have) {x}?",
            ),
            new=(
                "(Can you explain|Do you know about) {x}?",
                "(Tell me|Do you know) (how {x} works|why there is {x}|what {x} means).",
                "What does {x} mean?",
                "What happens (with|in) {x}?",
                "I want to (understand|make|learn about) {x}.",
            ),
        ),
    ),
    _Field(
        _topics(
            "translate this, book a flight, play music, open the door, call my mother, write code, send an email, "
            "draw a house, "
            "sing a song, write a poem, order a pizza, buy a ticket, turn on the light, search the web, set a timer, "
            "take a photo, "
            "fix my car, cook dinner, read my mail, find a restaurant, write an essay, do my homework, show me a "
            "picture, "
            "drive a car, play chess, print a page, learn to swim, lose weight, find a job, solve this puzzle, remind "
            "me tomorrow, "
            "make coffee, clean my room, check my spelling, summarize this, wake me up, dance, fly, feed my pet, save "
            "money"
        ),
        Wordings(
            trained=(
                "(Can|Could|Will) you {x}?",
                "{x}(| please|.)",
                "How (do|can|should) I {x}?",
                "I want (you to|to) {x}.",
                "(Please|You should) {x}.",
                "When (can|should) (I|we) {x}?",
                "What do I need to {x}?",
            ),
            new=(
                "Do you know how to {x}?",
                "Help me to {x}.",
                "Are you able to {x}?",
                "Is it hard to {x}?",
                "Tell me how (I can|to) {x}.",
            ),
        ),
    ),
    _Field(
        _topics(
            "the time, the date, the year, the news, the score, the score of the game, the price of gold, my age, my "
            "birthday, my phone number, "
            "my password, the time in Tokyo, the train to London, the meaning of life, the speed of light, the square "
            "root of 16, "
            "the exchange rate, the next bus, the population of the world, the tallest mountain, the longest river, "
            "the biggest country, the fastest animal, the smallest planet, the best movie, the answer to everything, "
            "my mother's name, the boiling point of water, the number of stars, the first president, the largest "
            "ocean, "
            "the value of pi, the latest song, the strongest man, the richest person, the oldest city, my shoe size, "
            "the menu, "
            "the traffic, the temperature, the secret"
        ),
        Wordings(
            trained=(
                "(What is|What's|Tell me|Give me|Do you know) {x}?",
                "What was {x} (yesterday|today|last year)?",
                "(Where|How) (is|can I find) {x}?",
                "What about {x}?",
                "{x}?",
                "I (need|want) to know {x}.",
                "(Show|Read) me {x}.",
            ),
            new=(
                "Can you (tell|give) me {x}?",
                "What can you say about {x}?",
                "Say {x} (to me|now).",
                "Find out {x} for me.",
                "Have you got {x}?",
            ),
        ),
    ),
)  # fmt: skip

# What is asked as facts are, of things that the tables of facts don't hold.
_NEAR_FACTS = (
    (
        "Brazil Mexico Chile Argentina Denmark Belgium Vietnam Nepal Iceland Morocco Nigeria Australia Texas Ukraine "
        "Romania "
        "Croatia Bulgaria Iran Iraq Pakistan Thailand Indonesia Colombia Bolivia Ghana Ethiopia Libya Mongolia Jamaica "
        "Scotland Wales Korea Israel Lebanon Serbia Estonia Latvia Africa Europe Mars California Switzerland"
    ),
    "table chair music tree window pencil garden computer bread money Monday seven doctor teacher river stone book car "
    "monkey paper dance kitchen school birthday sugar ocean city science coffee",
    "giraffe elephant zebra fish crab spider shark whale turtle worm lizard kangaroo camel dolphin owl penguin ant "
    "fox rabbit "
    "bear crocodile butterfly dragon robot stone table",
    "car house book shirt door computer chair bus shoe phone wall pencil flag cup bag dog cat horse bird dragon hat "
    "pen doll",
)
_NEAR_WORDINGS = (CAPITAL_OF, OPPOSITE_OF, SOUND_OF, COLOR_OF)
_SLANG = Wordings(
    trained=("What is a {x}?", "What is {x}?", "What's a {x}?", "Where is {x}?", "Who is {x}?",
             "What does {x} mean?", "{x}?",
             "(Tell me|Do you know) what (a |){x} is."),
    new=("Is {x} a real thing?", "Have you (seen|got) a {x}?", "What do you call a {x}?", "Do you know (a |){x}?"),
)  # fmt: skip
_HARD_SUMS = Wordings(
    trained=(
        "(What is|What's|How much is) {a} (/|divided by) {b}?",
        "{a} (/|:) {b}(| =)",
        "Divide {a} by {b}.",
        "(What is|How much is) {b} percent of {a}?",
        "What is (half|a third) of {a}?",
        "What is the (square|root|square root) of {a}?",
        "(What is|How much is) {a}.{b} (+|-) {b}?",
    ),
    new=(
        "How much do I get when I divide {a} by {b}?",
        "{b}% of {a}?",
        "(Calculate|Find) the square root of {a}.",
        "How often does {b} go into {a}?",
    ),
)
_NOT_TOLD = Wordings(
    trained=(
        "(What is|What's|Tell me|Do you know) my (name|city|pet|favorite color)?",
        "Who am I?",
        "Where do I live?",
        "(What|Which) (pet|animal) do I have?",
        "Which color do I like?",
        "Where am I from?",
        "Say my name.",
    ),
    new=(
        "Do you know who I am?",
        "Do you know where I live?",
        "(Tell me|Say) (who I am|which pet I have).",
        "And what is my name?",
        "My favorite color is what?",
    ),
)


def not_knowing(rng: Random, new: bool = False) -> Exercise:
    """A question about something that no other skill teaches, or about the user, who has not told it."""
    draw = rng.random()
    if draw < 0.5:
        number = rng.randrange(len(_FIELDS))
        topic = rng.choice(_FIELDS[number].topics)
        return _unknown(phrase(rng, _FIELDS[number].wordings, new, x=topic), topic)
    if draw < 0.8:
        number = rng.randrange(len(_NEAR_FACTS))
        word = rng.choice(_NEAR_FACTS[number].split())
        if rng.random() < 0.3:
            word = invented_word(rng, rng.randint(1, 3))
            word = word.capitalize() if number == 0 else word
        name = f"a {word}" if number == 3 else word
        text = phrase(rng, _NEAR_WORDINGS[number], new, x=name, xs=f"{word}s", **{"is": "is", "does": "does"})
        return _unknown(text, f"{number} {word}")
    if draw < 0.88:
        word = invented_word(rng, rng.randint(1, 3))
        return _unknown(phrase(rng, _SLANG, new, x=word.capitalize() if rng.random() < 0.5 else word), word)
    if draw < 0.95:
        a, b = rng.randint(10, 999), rng.randint(2, 99)
        return _unknown(phrase(rng, _HARD_SUMS, new, a=a, b=b), f"hard {a} {b}")
    # Other talk of the same conversation may have told it.
    turn = (phrase(rng, _NOT_TOLD, new), NOT_TOLD)
    return Exercise(() if new else ("not told",), (turn,), alone=True)


def _unknown(question: str, topic: str) -> Exercise:
    return Exercise((f"unknown {topic}",), ((question, UNKNOWN),))
