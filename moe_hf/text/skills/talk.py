"""Skills of talk: small talk, remembering what was said, the name in a system message, stories, and not knowing."""

from random import Random

from moe_hf.text.skills.skill import Exercise, fact_exercise, phrase
from moe_hf.text.skills.words import ANIMALS, CITIES, COLORS, invented_word, person

# The answer to what may be said.
_SMALL_TALK: dict[str, str] = {
    "Hello! How can I help you?": (
        "Hello | Hi | Hey | Hello there | Hi there | Good day | Hey there | Good morning | Good evening | Hi Moe"
    ),
    "I am fine, thank you. How are you?": "How are you | How are you doing | How do you do | How is it going",
    "My name is Moe. I am a small mixture of experts.": (
        "What is your name | Who are you | What are you | What's your name"
    ),
    "I can add, subtract, spell, count, sort, read a short text and chat.": (
        "What can you do | How can you help me | What do you know | Help"
    ),
    "You are welcome!": "Thank you | Thanks | Thanks a lot | Many thanks | Thank you very much",
    "Goodbye! It was nice to talk to you.": "Bye | Goodbye | See you | Bye bye | Good night",
    "Why did the expert stay home? The router did not pick him.": (
        "Tell me a joke | Do you know a joke | Make me laugh | Another joke"
    ),
    "I am very young. I was trained in a few minutes.": "How old are you | When were you born | What is your age",
    "I live in your computer.": "Where do you live | Where are you | Where are you from",
    "No, I am a small language model.": "Are you human | Are you a person | Are you real | Are you a robot",
    "I am glad to hear that!": "I am fine | I am good | I am happy | I'm fine | I feel good | Fine",
    "I am sorry to hear that. I hope it gets better soon.": (
        "I am sad | I feel bad | I am tired | I'm sad | I am not well"
    ),
    "I like numbers, letters and short stories.": "What do you like | What is your hobby | What do you like to do",
    "I was made with moe_hf.": "Who made you | Who built you | Who trained you",
    "A mixture of experts has many small networks, and a router picks some for each word.": (
        "What is a mixture of experts | What is an expert | How do you work"
    ),
    "Thank you! That is kind of you.": "You are great | Well done | You are smart | Good job | Very good",
    "I am sorry. I am small and make mistakes.": "That is wrong | You are wrong | You are stupid | That is not right",
    "Good! What shall we do next?": "Yes | Ok | Okay | Sure | Right",
    "All right. What would you like instead?": "No | No thanks | Not really | I don't think so",
    "That is sweet. I like talking to you too.": "I love you | I like you | Do you like me",
    "Shall I tell you a story? Ask me for one about an animal.": "I am bored | What shall we do | I have nothing to do",
    "I can't see the weather from in here.": "How is the weather | Is it raining | What is the weather like",
    "I only guess the next word, again and again.": (
        "Can you think | Do you think | Are you clever | Do you have feelings"
    ),
    "I like blue best.": "What is your favorite color | Which color do you like | Do you have a favorite color",
    "I don't eat, but I like numbers.": "What do you eat | Are you hungry | What is your favorite food",
    "I only speak a little English.": "Do you speak German | Which languages do you speak | Do you speak French",
    "Sorry, I can't say it better. Ask me something else.": "I don't understand | What do you mean | Why | What",
    "Ha ha! I am glad that you laugh.": "Ha ha | That is funny | You are funny | Lol",
    "Yes! Ask me to add, spell, count or sort something.": (
        "Can you help me | Please help me | I need help | I have a question"
    ),
}

_ENDINGS = ("", "!", ", Moe", " today", ", friend", " :)", " now", ", my friend")


def small_talk(rng: Random) -> Exercise:
    """A greeting, a question about the model itself, thanks, a feeling, a farewell."""
    answer = rng.choice(sorted(_SMALL_TALK))
    opening = rng.choice(_SMALL_TALK[answer].split(" | "))
    templates = tuple(opening + ending for ending in _ENDINGS)
    return fact_exercise(rng, "talk", opening, templates, answer)


_REMEMBERED: tuple[tuple[tuple[str, ...], str, tuple[str, ...], str], ...] = (
    (("My name is {x}.", "I am called {x}.", "Call me {x}.", "Hi, my name is {x}.", "I am {x}."),
     "Nice to meet you, {x}!",
     ("What is my name?", "Who am I?", "Do you know my name?", "What's my name?"), "Your name is {x}."),
    (("I live in {x}.", "My home is in {x}.", "I come from {x}."), "{x} must be nice.",
     ("Where do I live?", "What is my city?", "Where is my home?"), "You live in {x}."),
    (("I have a {x}.", "My pet is a {x}."), "A {x}? How nice!",
     ("What pet do I have?", "Which animal do I have?", "What is my pet?"), "You have a {x}."),
    (("My favorite color is {x}.", "I like the color {x}.", "I love {x}."), "{x} is a nice color.",
     ("What is my favorite color?", "Which color do I like?", "What color do I love?"), "You like {x}."),
)  # fmt: skip


def remembering(rng: Random) -> Exercise:
    """Something that the user says about themself, asked for later, at times after other talk."""
    number = rng.randrange(len(_REMEMBERED))
    tell, reply, ask, answer = _REMEMBERED[number]
    x = (
        person(rng, invented=0.4),
        rng.choice([*CITIES, invented_word(rng).capitalize()]),
        rng.choice(ANIMALS),
        rng.choice(COLORS),
    )[number]
    turns = [(phrase(rng, tell, x=x), _capitalised(reply.format(x=x)))]
    between = [small_talk(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
    turns += [turn for exercise in between for turn in exercise.turns]
    turns.append((phrase(rng, ask, x=x), answer.format(x=x)))
    return Exercise((f"remember {number} {x}", *(key for exercise in between for key in exercise.keys)), tuple(turns))


def persona(rng: Random) -> Exercise:
    """The name and home that a system message gives the model."""
    name, city = person(rng), rng.choice(CITIES)
    system = f"Your name is {name}. You live in {city}."
    if rng.random() < 0.6:
        turn = phrase(rng, ("What is your name?", "Who are you?", "What's your name?")), f"My name is {name}."
    else:
        turn = phrase(rng, ("Where do you live?", "Where are you from?")), f"I live in {city}."
    return Exercise((f"persona {name} {city}",), (turn,), system)


_FRIENDS = dict(zip(ANIMALS, ANIMALS[5:] + ANIMALS[:5], strict=True))
_PLACES = {
    "forest": ("lost its way", "showed it the path"),
    "river": ("could not swim", "built it a boat"),
    "garden": ("was hungry", "gave it an apple"),
    "city": ("was afraid of the cars", "held its hand"),
    "house": ("could not sleep", "sang it a song"),
    "mountain": ("was cold", "made it a fire"),
}


def story(rng: Random) -> Exercise:
    """A story about an animal at a place: the animal decides the friend, the place decides what happens."""
    hero, place = rng.choice(ANIMALS), rng.choice(sorted(_PLACES))
    trouble, help_ = _PLACES[place]
    friend = _FRIENDS[hero]
    templates = (
        "Tell me a story about a {h} and a {p}.",
        "Tell a story about a {h} and a {p}.",
        "Write a story about a {h} in a {p}.",
        "I want a story about a {h} and a {p}.",
    )
    answer = (
        f"Once upon a time there was a little {hero} in a {place}. The {hero} {trouble}. "
        f"Then a {friend} came and {help_}. The {hero} and the {friend} were friends for ever."
    )
    return Exercise((f"story {hero} {place}",), ((phrase(rng, templates, h=hero, p=place), answer),))


def not_knowing(rng: Random) -> Exercise:
    """A question about something that does not exist, which a model should own up to."""
    word = invented_word(rng, rng.randint(1, 3))
    name = word.capitalize()
    question, answer, x = rng.choice([
        ("What is the capital of {x}?", "the capital of {x}", name),
        ("What's the capital of {x}?", "the capital of {x}", name),
        ("What is the opposite of {x}?", "the opposite of {x}", word),
        ("What does a {x} say?", "what a {x} says", word),
        ("What color is a {x}?", "what color a {x} is", word),
        ("Who is {x}?", "who {x} is", name),
        ("Where is {x}?", "where {x} is", name),
        ("What is a {x}?", "what a {x} is", word),
    ])  # fmt: skip
    return Exercise((f"unknown {word}",), ((phrase(rng, (question,), x=x), f"I don't know {answer.format(x=x)}."),))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
