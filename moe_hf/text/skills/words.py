"""The words that the skills draw on: names, things, real words to spell, and words that nobody has ever seen."""

from random import Random

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tom Vera "
    "Will Zoe Adam Lucy Max Nina Oscar Pia Ralph Sofia"
).split()

THINGS = (
    "apple ball book boat bell box brush cake car coin cup doll drum egg flag flower hat kite key lamp map mug pen "
    "pear plum ring rope shell shoe star stone toy"
).split()

COLORS = "red blue green yellow black white pink brown gray purple".split()

CITIES = "Paris Rome London Berlin Madrid Tokyo Cairo Oslo Lima Vienna Athens Delhi".split()

ANIMALS = "dog cat cow horse pig sheep duck lion frog bee wolf hen goat mouse bear fox rabbit snake".split()

SPELLING_WORDS = (
    "strawberry banana butter window garden planet silver purple pocket kitten yellow letter bottle summer winter "
    "spring autumn bridge castle dragon engine forest guitar hammer island jungle ladder magnet napkin pepper "
    "rocket saddle tunnel velvet walnut basket candle donkey feather giraffe helmet insect jacket kettle lemon "
    "marble needle onion parrot rabbit salad ticket umbrella violin wizard zebra almond bamboo carrot desert "
    "eagle finger glove honey igloo juice koala lizard mirror noodle ocean pencil queen river spider tiger uncle "
    "valley whale yogurt cherry dolphin elbow falcon grape hotel ivory jelly knife lobster melon nickel olive "
    "panda quilt robin sugar tomato turtle vessel wagon breeze coffee cookie cotton dinner fabric gentle happen "
    "hollow indigo jigsaw kidney little meadow narrow orchid puzzle quartz ribbon simple thread unique volcano "
    "willow pillow rubber shovel sponge street tennis tunic vanilla whistle wonder pumpkin mushroom elephant "
    "mountain sandwich butterfly chocolate dinosaur football hospital kangaroo language mosquito notebook octopus "
    "pineapple rainbow scissors telephone universe vegetable waterfall xylophone mississippi tennessee cinnamon "
    "computer blackboard lighthouse motorcycle strawberries grandmother restaurant watermelon basketball screwdriver "
    "caterpillar neighborhood information electricity temperature photograph microscope crocodile helicopter adventure "
    "breakfast beautiful different important tomorrow yesterday together question knowledge happiness friendship hello "
    "world house water orange school friend family people paper table chair construction intelligent refrigerator "
    "thunderstorm championship conversation handwriting"
).split()

LONGEST_WORD = 12
"""Letters of the longest word that is taken apart."""

_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr kr pl st tr zw".split()
_VOWELS = "a e i o u oo ee ai".split()
_CODAS = ["", "", "", *"b d g k l m n p r s t x z nk rt".split()]


def invented_word(rng: Random, syllables: int = 2) -> str:
    """A word that can be spoken but most likely means nothing, such as "drofan"."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_CODAS)


def spelling_word(rng: Random) -> str:
    """A real word, an invented one or a jumble of letters, to be looked at letter by letter."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(SPELLING_WORDS)
    if draw < 0.8:
        return invented_word(rng, rng.randint(1, 4))[:LONGEST_WORD]
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, rng.randint(4, LONGEST_WORD))))


def person(rng: Random, invented: float = 0.15) -> str:
    """A first name: a common one or, with the probability `invented`, one that nobody has."""
    return invented_word(rng).capitalize() if rng.random() < invented else rng.choice(NAMES)
