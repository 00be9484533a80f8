"""Finds the facts in what a user says: `key : value` lines of what is stated, and of nothing else."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from moe_hf.memory.fact_patterns import (
    ANIMAL,
    ATTRIBUTES,
    EMPTY_VALUES,
    MONTHS,
    MULTIPLE,
    NOT_A_STATEMENT,
    NOT_STATED,
    OPENERS,
    PREDICATES,
    RELATION,
    SHARED_ATTRIBUTES,
    TAIL,
    Predicate,
)

LONGEST_TEXT = 4000
LONGEST_VALUE = 80
_CONTRACTIONS = tuple(
    (re.compile(pattern, re.IGNORECASE), full)
    for pattern, full in (
        (r"\bi'?m\b", "I am"),
        (r"\bive\b|\bi've\b", "I have"),
        (r"\bi'd\b", "I would"),
        (r"\bi'll\b", "I will"),
        (r"\blet's\b", "let us"),
        (r"\b(we|they|you)'re\b", r"\1 are"),
        (r"\b(we|they|you)'ve\b", r"\1 have"),
        (r"\b(he|she|name)'s\b", r"\1 is"),
        (r"\bcan't\b", "can not"),
        (r"\b(do|does|did|is|was|are|were|have|has|would|could|should)n'?t\b", r"\1 not"),
        (r"\b(?:fav|favorite|fave)\b", "favourite"),
        (r"\bbday\b", "birthday"),
    )
)
# Not behind a title, an initial or a number.
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])([.!?]+)(?=\s|$)|\n+")
_QUOTED = re.compile('["\u201c\u201d]([^"\u201c\u201d]*)["\u201c\u201d]')
_CLAUSE_END = re.compile(
    r"(?P<joiner>\s*[,;:(]\s+|\s*\)\s*|\s+-+\s+|,?\s+(?:and|but|because|so|which|although|"
    r"though|while|since|until)\s+)",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?:(?:Mr|Ms|Mrs|Dr|Prof)\.? )?[A-Z][\w'-]*(?: (?:(?:de|van|von|der|la) )*[A-Z][\w'-]*){0,2}$")
_TITLED = re.compile(r"(?:Mr|Ms|Mrs|Dr|Prof)\.? [A-Z][\w'-]*$")
_NO_NAME = re.compile(
    r"(?i:i|monday|tuesday|wednesday|thursday|friday|saturday|sunday|" + "|".join(MONTHS) + r"|\w+(?:ish|ese|ian|ean))$"
)
_OWNER = re.compile(
    rf"(?:my|our) (?P<relation>{RELATION})(?:,? (?P<name>(?:(?:Mr|Ms|Mrs|Dr)\.? "
    rf")?[a-zA-Z][\w'-]*(?: (?-i:[A-Z])[\w-]*)?))?,? (?P<rest>.+)",
    re.IGNORECASE,
)
_FAVOURITE = re.compile(r"(?:my|our) favou?rite (?P<what>[a-z][a-z -]{1,30}?) (?:is|are) (?P<value>.+)", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rf"(?P<whose>my|our|the) (?P<what>(?:[\w'-]+ ){{0,3}}(?:{'|'.join(ATTRIBUTES)}))"
    r"(?P<of> (?:of|for|to) (?:(?:the|my|our) )?[\w ]{1,30}?)? (?:is|are) (?P<value>.+)",
    re.IGNORECASE,
)
_NAMED_PART = re.compile(
    rf"(?:my|our) (?P<what>(?:(?:{RELATION})'s? )?(?:{ANIMAL}s?|{RELATION}|boat|car|house))(?:'s name)? "
    r"(?:is|are) (?:called|named) (?P<value>.+)",
    re.IGNORECASE,
)
_POSSESSIVE_NAME = re.compile(
    rf"(?:my|our) (?P<who>(?:{RELATION})(?:'s \w+)?|{ANIMAL})'s name is (?P<value>.+)", re.IGNORECASE
)
_LEAVES = re.compile(
    r"(?:my|our) (?P<what>train|flight|plane|bus|ferry|shift|lesson|class) "
    r"(?P<value>(?:leaves|departs|starts|arrives|begins|ends) .+)",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"(?P<who>he|she|they|his|her|their) (?P<rest>.+)", re.IGNORECASE)


class Fact(NamedTuple):
    """Something that the user stated.

    Attributes:
        key: whose and which: `favourite colour`, `sister Ada's home`; what belongs to the user has no owner.
        value: in the user's words.
        when: the time that was said with it, as it was said; empty if none was.
        multiple: whether a new value stands beside older ones of the key instead of replacing them.
    """

    key: str
    value: str
    when: str = ""
    multiple: bool = False

    @property
    def line(self) -> str:
        """The fact as a memory block shows it."""
        return f"{self.key} : {self.value}" + (f" ({self.when})" if self.when else "")


def extract_facts(text: str) -> list[Fact]:
    """The facts that a turn of the user states, in their order.

    Questions, negations, hypotheses, tasks ("write ...", "translate ..."), quotations and what others are said to have
    said are left out. The grammar is English; other languages give no facts.

    Args:
        text: what the user wrote; of a longer one the first 4,000 characters are read.

    >>> [fact.line for fact in extract_facts("By the way, my sister Ada moved to Lisbon in May.")]
    ["sister's name : Ada", "sister Ada's home : Lisbon (in may)"]
    """
    found: dict[Fact, None] = {}
    owner = ""
    for sentence, is_question in _sentences(text[:LONGEST_TEXT]):
        facts, owner = _facts_of_sentence(sentence, is_question, owner)
        found.update(dict.fromkeys(facts))
    return list(found)


def _sentences(text: str) -> Iterator[tuple[str, bool]]:
    """Sentences without quoted speech, and whether each is a question."""
    text = text.replace("\u2019", "'").replace("\u2018", "'")
    # One word in quotation marks is a name or a password, several are somebody's speech.
    text = _QUOTED.sub(lambda match: match[1] if len(match[1].split()) == 1 else "QUOTED said", text)
    for pattern, full in _CONTRACTIONS:
        text = pattern.sub(full, text)
    start = 0
    for match in _SENTENCE_END.finditer(text):
        yield " ".join(text[start : match.start()].split()), "?" in match[0]
        start = match.end()
    yield " ".join(text[start:].split()), False


def _facts_of_sentence(sentence: str, is_question: bool, owner: str) -> tuple[list[Fact], str]:
    """Facts, and whom a pronoun behind them means, given whom it meant before."""
    found: list[Fact] = []
    clauses = _clauses(OPENERS.sub("", sentence))
    subject = ""
    before: Fact | None = None
    for number, clause in enumerate(clauses):
        last = number == len(clauses) - 1
        clause = OPENERS.sub("", clause + " ").strip()
        if NOT_A_STATEMENT.match(clause):
            # What follows an "if", a task or a question hangs on it.
            break
        if (is_question and last) or not clause:
            continue
        # Not liking is a statement; any other "not" takes the statement back.
        if NOT_STATED.search(re.sub(r"^I do not like ", "", clause)):
            if re.search(
                r"(?i)\b(?:said|says|say|claimed|told|asked|asks|if|whether|thinks|wondering|scenario|sentence)\b",
                clause,
            ):
                break
            subject = ""
            continue
        facts, who, subject = _facts_of_clause(clause, owner, subject)
        if (
            not facts
            and before is not None
            and before.multiple
            and re.fullmatch(r"(?:(?:an?|the) )?\S+(?: \S+)?", clause)
        ):
            # "I speak Dutch and Polish"
            facts = _fact("", before.key, clause, "text", clause)
        before = facts[-1] if facts else None
        owner = owner if who is None else who
        found += facts
    return found, owner


def _clauses(sentence: str) -> list[str]:
    """The sentence cut at its joints, but not within a list of names or an address."""
    parts = _CLAUSE_END.split(sentence)
    clauses = [parts[0]]
    for joiner, part in zip(parts[1::2], parts[2::2], strict=True):
        before = clauses[-1]
        is_name = re.fullmatch(r"[A-Z][\w-]*(?: [A-Z][\w-]*)*", part.strip()) and not part.startswith("I ")
        listed = re.search(r"(?i)\b(?:called|named|address is|birthday is|lives? in|moved to) ", before)
        if is_name and listed and joiner.strip() in ("and", ","):
            clauses[-1] = before + joiner + part
        elif before.lower().rsplit(" ", 1)[-1] in ("remember", "note") or not before.strip():
            clauses[-1] = part
        elif re.fullmatch(r"(?i)(?:my|our) \S+(?: \S+)?", before.strip()) and joiner.strip() == ",":
            # "My boss, Mr. Okafor, wants": the name stands beside.
            clauses[-1] = before + " " + part
        else:
            clauses.append(part)
    return clauses


def _facts_of_clause(clause: str, owner: str, subject: str) -> tuple[list[Fact], str | None, str]:
    """Facts of one clause, whom a later "she" means (None: as before), and the subject of a next clause without one."""
    for read in (_favourite, _possessive, _attribute):
        facts = read(clause)
        if facts:
            who = facts[0].key.removesuffix("'s name") if facts[0].key.endswith("'s name") else None
            return facts, _named_owner(facts, who), ""
    match = _OWNER.fullmatch(clause)
    if match:
        return _of_relation(match)
    match = re.fullmatch(r"(?i)(?:you can |please |just )?call me (?P<value>\S+(?: [A-Z]\S*)?)", clause)
    if match:
        return _fact("", "name", match["value"], "name", clause), None, ""
    match = re.fullmatch(r"(?i)(?P<who>i|we) (?P<rest>.+)", clause)
    if match:
        return _own(match["rest"], clause), None, "I"
    match = _PRONOUN.fullmatch(clause)
    if match:
        if not owner or match["who"].lower() in ("his", "her", "their"):
            return [], None, ""
        return _predicates(owner, match["rest"]), None, owner
    if re.match(r"(?i)who\b", clause) and owner:
        return _predicates(owner, clause[4:]), None, owner
    if subject:
        rest = clause
        if subject == "I":
            return _own(rest, clause), None, subject
        return _predicates(subject, rest), None, subject
    return [], None, ""


def _own(rest: str, clause: str) -> list[Fact]:
    match = re.fullmatch(r"(?i)am (?P<value>[A-Z]\S*(?: [A-Z]\S*)?)(?: btw| by the way| here)?", rest)
    if match and match["value"][0].isupper():
        return _fact("", "name", match["value"], "name", clause)
    return _predicates("", rest)


def _of_relation(match: re.Match[str]) -> tuple[list[Fact], str | None, str]:
    relation, name, rest = match["relation"].lower(), match["name"], match["rest"]
    # The pattern takes any word for a name, since users write them small; a verb is none.
    if name and not _is_name_before(name, rest):
        rest, name = f"{name} {rest}", None
    facts = [Fact(f"{relation}'s name", name)] if name else []
    owner = f"{relation} {name}" if name else relation
    direct = re.fullmatch(r"is (?P<value>.+)", rest)
    if direct and not name and _as_name(direct["value"]):
        return [Fact(f"{relation}'s name", direct["value"])], f"{relation} {direct['value']}", ""
    facts += _predicates(owner, rest)
    return facts, owner, owner


def _is_name_before(name: str, rest: str) -> bool:
    if name[0].isupper():
        return True
    # Small: only where a verb of the tables follows, and the word itself is none.
    verb = (
        r"(?:is|are|has|have|lives?|works?|moved|got|studies|plays?|loves?|likes?|hates?|turned|turns|was|just|now)\b"
    )
    return " " not in name and not re.match(verb, name) and bool(re.match(verb, rest)) and len(name) > 2


def _favourite(clause: str) -> list[Fact]:
    match = _FAVOURITE.fullmatch(clause)
    return _fact("", f"favourite {match['what'].lower()}", match["value"], "text", clause) if match else []


def _possessive(clause: str) -> list[Fact]:
    match = _POSSESSIVE_NAME.fullmatch(clause) or _NAMED_PART.fullmatch(clause)
    if match is None:
        match = re.fullmatch(
            rf"(?i)(?:my|our|his|her) (?P<who>{RELATION}'s \w+|{RELATION}) is (?:called|named) (?P<value>.+)", clause
        )
    if match is None:
        return []
    who = (match.groupdict().get("who") or match.groupdict().get("what") or "").lower()
    whose = f"{who}'" if who.endswith("s") and not who.endswith("ss") else f"{who}'s"
    return _fact("", f"{whose} name", match["value"], "names", clause)


def _attribute(clause: str) -> list[Fact]:
    match = _LEAVES.fullmatch(clause)
    if match:
        return _fact("", match["what"].lower(), match["value"], "kept", clause)
    match = _ATTRIBUTE.fullmatch(clause)
    if match is None:
        return []
    what, of, value = match["what"].lower(), match["of"], match["value"]
    head = what.rsplit(" ", 1)[-1]
    if match["whose"].lower() == "the" and head not in SHARED_ATTRIBUTES:
        return []
    if of:
        place = re.sub(r"^ (?:of|for|to) (?:(?:the|my|our) )?", "", of)
        what = f"{place.lower()} {what}" if " to " not in of[:4] else f"{what} to {place}"
    # "The code is wrong", "my job is stressful": a lone adjective identifies nothing.
    dated = re.sub(r"(?i)^(?:going to be )?(?:on|at) (?:the )?", "", value)
    needs_more = head in ("code", "pin", "number", "password", "passphrase", "plate", "size")
    if needs_more and not (re.search(r"[\d\"]", dated) or dated[:1].isupper() or head in ("password", "passphrase")):
        return []
    if not needs_more and head in (
        "flight",
        "key",
        "exam",
        "wedding",
        "meeting",
        "appointment",
        "interview",
        "deadline",
    ):
        if not re.match(r"(?i)(?:going to be )?(?:on|at|in|under|behind|next|tomorrow|beside|with)\b", value):
            return []
    if head in ("job", "idea") and len(dated.split()) == 1:
        return []
    return _fact("", what, dated, "name" if head == "name" else "kept", clause)


def _predicates(owner: str, rest: str) -> list[Fact]:
    """What the first fitting predicate says of an owner ("" is the user)."""
    rest, when = _without_tail(rest)
    for predicate in PREDICATES:
        match = predicate.pattern.fullmatch(rest)
        if match:
            return _filled(predicate, match, owner, when)
    return []


def _filled(predicate: Predicate, match: re.Match[str], owner: str, when: str) -> list[Fact]:
    facts: list[Fact] = []
    for group, attribute in predicate.attributes.items():
        value = match[group]
        if value is None:
            continue
        of = match.groupdict().get("key")
        if of:
            attribute = f"{of.lower()}'s {attribute}" if attribute else of.lower()
            value = re.sub(r"(?i)^(?:on|at) (?:the )?", "", value)
        facts += _fact(owner, attribute, value, predicate.kind, "", when)
    return facts


def _without_tail(text: str) -> tuple[str, str]:
    when = ""
    while match := TAIL.search(text):
        when = match["when"] or when
        text = text[: match.start()]
    return text, when.lower()


def _fact(owner: str, attribute: str, value: str, kind: str, clause: str, when: str = "") -> list[Fact]:
    """The fact, if its value is one: checked by its kind, without an article and what hangs on behind."""
    if kind != "kept":
        value, said = _without_tail(value)
        when = when or said
    value = (
        re.sub(r"(?i)^(?:a|an|the) (?=\S)", "", value.strip(" .,;:!\"'"))
        if attribute not in ("home",)
        else value.strip(" .,;:!\"'")
    )
    words = value.lower().split()
    if (
        not words
        or len(value) > LONGEST_VALUE
        or len(words) > 10
        or words[-1] in EMPTY_VALUES
        or words[0] in ("that", "this", "to")
    ):
        return []
    if (
        kind == "name"
        and not _as_name(value)
        and attribute in ("name", "spouse's name")
        and not owner
        and clause[:2].lower() in ("i ", "")
    ):
        return []
    whose = f"{owner}'s " if owner else ""
    return [Fact(whose + attribute, value, when, attribute.rsplit("'s ", 1)[-1] in MULTIPLE)]


def _as_name(value: str) -> bool:
    return bool(_NAME.match(value)) and not _NO_NAME.match(value)


def _named_owner(facts: list[Fact], who: str | None) -> str | None:
    return f"{who} {facts[0].value}" if who and re.fullmatch(RELATION, who) else None
