"""The written-out table of skills that the embedded corpus teaches."""

from moe_hf.text.skills import arithmetic, facts, letters, lists, reading, small_talk, talk, unknown
from moe_hf.text.skills.skill import Skill

SKILLS: tuple[Skill, ...] = (
    Skill("addition", "generalise", 1.4, arithmetic.addition),
    Skill("subtraction", "generalise", 1.7, arithmetic.subtraction),
    Skill("multiplication", "generalise", 1.4, arithmetic.multiplication),
    Skill("comparison", "generalise", 1.1, arithmetic.comparison),
    Skill("parity", "generalise", 0.4, arithmetic.parity),
    Skill("word problem", "generalise", 1.2, arithmetic.word_problem),
    Skill("counting", "generalise", 1.1, lists.counting),
    Skill("sorting", "generalise", 1.2, lists.sorting),
    Skill("calendar", "generalise", 1.0, lists.calendar),
    Skill("repetition", "generalise", 0.6, lists.repetition),
    Skill("spelling", "generalise", 1.4, letters.spelling),
    Skill("letter", "generalise", 0.7, letters.letter_at),
    Skill("word length", "generalise", 1.8, letters.word_length),
    Skill("possession", "generalise", 3.2, reading.possession),
    Skill("capital", "facts", 1.0, facts.capital),
    Skill("opposite", "facts", 0.6, facts.opposite),
    Skill("animal sound", "facts", 0.5, facts.sound),
    Skill("color", "facts", 0.5, facts.thing_color),
    Skill("category", "facts", 0.7, facts.category),
    Skill("small talk", "talk", 2.4, small_talk.small_talk),
    Skill("remembering", "talk", 0.9, talk.remembering),
    Skill("persona", "talk", 0.4, talk.persona),
    Skill("story", "talk", 0.4, talk.story),
    Skill("not knowing", "talk", 2.4, unknown.not_knowing),
)
"""Every skill once. The weights were tuned by trials: what is hard to learn in the default run is drawn more often."""
