"""The grammar of facts, as tables: what somebody is to the user, what is said of people, and what is no statement."""

import re
from typing import NamedTuple

RELATIVES = (
    "sister brother mother mum mom father dad parents wife husband spouse partner fiance "
    "fiancee girlfriend boyfriend son "
    "daughter aunt uncle cousin nephew niece grandmother grandma grandfather grandpa "
    "granddaughter grandson friend boss "
    "manager colleague coworker neighbour neighbor roommate flatmate landlord landlady teacher tutor doctor dentist "
    "therapist coach child kid baby twin"
).split()
RELATION = (
    r"(?:(?:best|old|older|elder|little|younger|oldest|youngest|big|late|new|twin|ex|step|half|great|dear)[ -])?"
    rf"(?:step|ex-|grand)?(?:{'|'.join(RELATIVES)})(?:-in-law)?"
)
ANIMALS = (
    "dog cat parrot hamster rabbit horse pony tortoise turtle snake goldfish fish ferret "
    "budgie canary puppy kitten pig "
    "goat hen chicken lizard gecko mouse rat bird"
).split()
ANIMAL = rf"(?:{'|'.join(ANIMALS)})"

# What may stand behind "my" and before "is", as the last word; adjectives and nouns before it belong to the key.
ATTRIBUTES = (
    "name number code password passphrase pin address birthday anniversary size type plate age height weight nickname "
    "surname email username handle job profession hobby wedding flight exam appointment interview meeting deadline "
    "graduation locker key major hometown timezone passport blood"
).split()
# Those of them that are facts behind "the" as well, which may be anybody's.
SHARED_ATTRIBUTES = (
    "code password passphrase pin exam appointment interview meeting deadline wedding flight address key"
).split()

JOBS = (
    "nurse doctor plumber carpenter baker pilot surgeon chef cook lawyer judge clerk architect paramedic miner farmer "
    "student accountant consultant mechanic librarian vet midwife barista waiter waitress soldier butcher tailor poet "
    "journalist police officer programmer developer engineer scientist researcher professor schoolteacher translator "
    "actor singer designer analyst manager secretary cashier postman firefighter sailor "
    "captain biologist nanny plasterer"
).split()
JOB = (
    rf"(?:[a-z-]+ ){{0,3}}?(?:{'|'.join(JOBS)}|"
    r"[a-z]+(?:ist|ician|ologist|smith|keeper|grapher|maker|driver|worker|teacher))"
)

# A clause that begins with one of these, or holds one of `NOT_STATED`, says nothing of how things are.
NOT_A_STATEMENT = re.compile(
    r"^(?:if|unless|suppose|imagine|pretend|let us|maybe|perhaps|translate|write|fix|explain|tell|rewrite|correct|"
    r"summari[sz]e|say|in (?:the|a|my) (?:novel|story|film|movie|book|game|dream)|according to|they say|"
    r"please (?:translate|write|fix|rewrite|correct)|(?:can|could|would|will|do|does|did|is|are|was|were|am|has|have|"
    r"had|should|what|who|where|when|why|how|which) (?:i|you|he|she|it|we|they|my|our|your|the|anybody|anyone|is|are|"
    r"am|was|do|does|did|would|if|about|old|much|many)\b)",
    re.IGNORECASE,
)
NOT_STATED = re.compile(
    r"\b(?:not|never|no longer|no|nobody|any ?more|might|(?-i:may)|could|would|wish|hope|"
    r"hopes|want to|wants to|used to|wonder|wondering|"
    r"whether|said|says|say|claimed|claims|told|asked|asks|thinks|think|thought|believes?|"
    r"pretend|scenario|if|maybe|perhaps|"
    r"possibly|probably|almost|nearly|sentence|thinking of|going to|planning to|supposed to|kidding|were)\b",
    re.IGNORECASE,
)
# Words before a statement that are no part of it.
OPENERS = re.compile(
    r"^(?:(?:so|yeah|yes|no|well|btw|by the way|actually|also|just so you know|just so you "
    r"are aware|fyi|note to self|hi|hey|hiya|hello|"
    r"ok|okay|oh|and|but|honestly|today|now|these days|since you ask|i should say|good "
    r"(?:morning|evening|afternoon)|dear|then|"
    r"(?:pls|please)?\s*(?:remember|note|do not forget)(?: that)?|i think you should "
    r"know(?: that)?|you should know(?: that)?|"
    r"keep in mind(?: that)?|for the record|to be clear|both|originally|recently|in fact|as you know|you know|"
    r"(?:i )?forgot to (?:say|mention)(?: that)?|did i mention(?: that)?)[\s,:]+)+",
    re.IGNORECASE,
)
# Where a value ends: what comes behind is when, how long, with whom, or chat.
MONTHS = "january february march april may june july august september october november december".split()
_TIME = (
    rf"in (?:early |late |mid-?)?(?:{'|'.join(MONTHS)})(?: \d{{4}})?|in (?:\d{{4}}|spring|"
    rf"summer|autumn|winter|the (?:spring|"
    r"summer|autumn|fall|winter))|(?:last|next|this) \w+|yesterday|today|now|\w+ (?:days?|weeks?|months?|years?) ago|"
    r"since \w+(?: \d{4})?|for (?:\w+ ){1,3}(?:years?|months?|weeks?|days?|ages)(?: now)?|these days|recently|again"
)
TAIL = re.compile(
    rf"\s+(?P<when>{_TIME})\b.*$"
    r"|\s+(?:btw|lol|haha|by the way|with (?:my|our|his|her|their|two|three|a)|too|either|as well|always|mostly|back|"
    r"originally|please|there|because|so|who|which|that|every)\b.*$",
    re.IGNORECASE,
)
_WHEN = re.compile(rf"\b(?P<when>{_TIME})\b", re.IGNORECASE)

# What is too vague to be worth a line.
EMPTY_VALUES = frozenset(
    "it this that them him her you me one everything nothing something anything question problem headache idea point "
    "moment lot minute time work home bed fine so too much what there here wrong right valid simple stressful nice "
    "everyone everybody people".split()
)


class Predicate(NamedTuple):
    """What may be said of somebody: a pattern behind the subject, with a named group for each attribute's value.

    `kind` is how the value is checked: `name` (a proper name), `text` (anything short and not vague).
    """

    pattern: re.Pattern[str]
    attributes: dict[str, str]
    kind: str = "text"


def _predicate(pattern: str, kind: str = "text", **attributes: str) -> Predicate:
    return Predicate(re.compile(pattern + r"$", re.IGNORECASE), attributes, kind)


_ADV = r"(?:(?:also|now|just|really|still|currently|absolutely|already|always|both|have|has|recently|can) )*"
_LINK = r"(?:(?:am|is|are) )"
# In order: the first that fits a clause is taken. The key of a value is the attribute that its group stands for.
PREDICATES: tuple[Predicate, ...] = (
    _predicate(rf"{_LINK}{_ADV}(?:called|named) (?P<a>.+)", "name", a="name"),
    _predicate(rf"{_LINK}{_ADV}(?P<a>1?\d\d?)(?: years? old| y/?o)?", a="age"),
    _predicate(rf"{_ADV}(?:turned|turns|turning|{_LINK}turning) (?P<a>1?\d\d?)", a="age"),
    _predicate(rf"(?:{_LINK}{_ADV}from|{_ADV}comes? from|{_ADV}grew up in) (?P<a>(?!now).+)", a="origin"),
    _predicate(rf"{_LINK}{_ADV}allergic to (?P<a>.+)", a="allergy"),
    _predicate(
        rf"{_LINK}{_ADV}(?:an? )?(?:strict )?(?P<a>vegan|vegetarian|pescatarian|gluten[- ]free|lactose intolerant|"
        r"diabetic|coeliac|halal|kosher)",
        a="diet",
    ),
    _predicate(rf"(?:{_LINK}{_ADV}married to|{_ADV}got married to|married) (?P<a>.+)", "name", a="spouse's name"),
    _predicate(r"(?:was|were|am) born in (?P<a>\d{4})", a="birthday"),
    _predicate(r"(?:was|were|am) born in (?P<a>.+)", a="birthplace"),
    _predicate(r"(?:was|were|am) born on (?P<a>.+)", a="birthday"),
    _predicate(rf"(?:{_LINK}{_ADV})?{_ADV}learning (?:to speak )?(?P<a>.+)", a="learning"),
    _predicate(
        rf"(?:{_LINK}{_ADV}studying|{_ADV}study|{_ADV}studies|{_ADV}been studying) (?P<a>.+?)(?: (?:at|in) (?P<b>.+))?",
        a="studies",
        b="school",
    ),
    _predicate(
        rf"(?:{_LINK}{_ADV}living in|{_LINK}based in|{_ADV}lives? in|{_ADV}lives? at|{_ADV}been living in|"
        rf"{_ADV}(?:moved|relocated|emigrated) (?:house )?to) (?P<a>.+)",
        a="home",
    ),
    _predicate(
        rf"(?:{_LINK}{_ADV}working as|{_ADV}works? as|{_ADV}been working as|{_ADV}(?:got|has|"
        rf"have|started) an? (?:new )?"
        r"job as) (?P<a>.+?)(?: (?:at|for|in) (?P<b>.+))?",
        a="job",
        b="workplace",
    ),
    _predicate(
        rf"(?:{_LINK}{_ADV}working (?:at|for)|{_ADV}works? (?:at|for)|{_ADV}been working (?:at|for)|"
        rf"{_ADV}(?:got|has|have|started) an? (?:new )?job (?:at|with))(?: a| an| the)? (?P<a>.+)",
        a="workplace",
    ),
    _predicate(rf"{_LINK}{_ADV}(?:a|an) (?P<a>{JOB})(?: (?:at|for|in) (?:the )?(?P<b>.+))?", a="job", b="workplace"),
    _predicate(rf"{_ADV}(?P<a>runs? (?:a|an|my own|our own) .+?)(?: in .+)?", a="job"),
    _predicate(rf"{_ADV}(?:teach|teaches) (?P<a>.+?)(?: (?:at|in) .+)?", a="teaches"),
    _predicate(rf"{_ADV}(?:hates?|dislikes?|do not like|does not like|can not stand) (?P<a>.+)", a="dislikes"),
    _predicate(rf"{_ADV}(?:loves?|likes?|enjoys?|adores?) (?P<a>(?!to know\b).+)", a="likes"),
    _predicate(rf"{_ADV}prefers? (?P<a>.+)", a="prefers"),
    _predicate(rf"{_ADV}(?:speaks?) (?:fluent |some |a bit of )?(?P<a>(?-i:[A-Z]).+)", a="speaks"),
    _predicate(rf"{_ADV}plays? (?:the )?(?P<a>[a-z]+)(?: in .+)?", a="plays"),
    _predicate(rf"{_ADV}drives? (?:a|an) (?P<a>.+)", a="car"),
    _predicate(
        rf"{_ADV}(?:have|has|own|owns|adopted|got) (?:a|an|two|three|\d+) (?:\w+ )?(?P<key>{ANIMAL}|{RELATION})s? "
        r"(?:called|named) (?P<a>.+)",
        "name",
        a="name",
    ),
    _predicate(rf"{_ADV}(?:have|has) (?P<a>(?:one|two|three|four|five|\d) (?:kids?|children))", a="children"),
    _predicate(rf"{_ADV}(?:have|has|own|owns|adopted|got) (?:a|an|two|three|\d+) (?P<a>(?:\w+ )?{ANIMAL})s?", a="pet"),
    _predicate(
        rf"{_ADV}(?:have|has|got) (?:a|an|my) (?P<key>(?:\w+ )?(?:appointment|meeting|exam|interview|flight|train|"
        r"wedding|deadline|concert)) (?P<a>(?:on|at|next|this|tomorrow|in) ?.*)",
        a="",
    ),
    _predicate(rf"{_ADV}bought (?:a|an) (?P<a>.+)", a="bought"),
)
# Attributes of which somebody may have several at a time: a new value stands beside the old ones.
MULTIPLE = frozenset("likes dislikes prefers allergy speaks plays learning bought teaches pet diet".split())
