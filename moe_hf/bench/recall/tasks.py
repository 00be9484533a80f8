"""The synthetic tasks: sequences in which some next tokens can only be known by remembering.

Shapes: N examples, S positions, P pairs, Q positions at which a pair can be asked for.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

LENGTH = 32
"""Tokens of every example of every task."""
IGNORED = -100
"""The label of positions that count for nothing."""

_KEYS, _VALUES = 16, 16
_SYMBOLS = 16
_COPIED = (LENGTH - 1) // 2
_APPEARANCES = 4


class Examples(NamedTuple):
    """Token ids (N, S), and the token that has to follow each (N, S); `IGNORED` where anything may."""

    ids_NS: torch.Tensor
    labels_NS: torch.Tensor


Draw = Callable[[int, torch.Generator], Examples]


class Task(NamedTuple):
    """A task to learn.

    Attributes:
        meaning: what has to be remembered.
        vocab_size: ids that occur are below it.
        chance: accuracy of guessing among all tokens that can be an answer.
        trained: the name of the variant that is trained on, among `variants`.
        variants: by name, what draws so many examples of it from a generator.
    """

    meaning: str
    vocab_size: int
    chance: float
    trained: str
    variants: dict[str, Draw]


def associative_recall(num_pairs: int, num: int, generator: torch.Generator) -> Examples:
    """Pairs of key and value, then every key once more, at random places: its value has to follow (MQAR).

    Arora et al. 2023, Zoology, section 3. The keys of an example are distinct; blanks fill the rest.
    """
    key_NP = torch.rand(num, _KEYS, generator=generator).argsort(dim=1)[:, :num_pairs]
    value_NP = torch.randint(_KEYS, _KEYS + _VALUES, (num, num_pairs), generator=generator)
    ids_NS, labels_NS = _blank(num, blank=_KEYS + _VALUES)
    ids_NS[:, 0 : 2 * num_pairs : 2] = key_NP
    ids_NS[:, 1 : 2 * num_pairs : 2] = value_NP
    num_places = (LENGTH - 2 * num_pairs) // 2
    place_NQ = torch.rand(num, num_places, generator=generator).argsort(dim=1)
    # Distinct places in random order, so that the keys come back in another order than they came.
    asked_NP = 2 * num_pairs + 2 * place_NQ[:, :num_pairs]
    ids_NS.scatter_(1, asked_NP, key_NP)
    ids_NS.scatter_(1, asked_NP + 1, value_NP)
    labels_NS.scatter_(1, asked_NP, value_NP)
    return Examples(ids_NS, labels_NS)


def copying(num: int, generator: torch.Generator) -> Examples:
    """Random symbols, a mark, and the same symbols in the same order: all of the second half has to be known.

    Graves et al. 2014, Neural Turing machines, section 4.1.
    """
    symbols = torch.randint(_SYMBOLS, (num, _COPIED), generator=generator)
    ids_NS, labels_NS = _blank(num, blank=_SYMBOLS)
    ids_NS[:, :_COPIED] = symbols
    ids_NS[:, _COPIED + 1 : 2 * _COPIED + 1] = symbols
    labels_NS[:, _COPIED : 2 * _COPIED] = symbols
    return Examples(ids_NS, labels_NS)


def induction(num: int, generator: torch.Generator) -> Examples:
    """Random symbols and, a few times among them, a mark: what followed it first has to follow it each time.

    Olsson et al. 2022, In-context learning and induction heads; Fu et al. 2023, H3, section 3.1.
    """
    ids_NS = torch.randint(_SYMBOLS, (num, LENGTH), generator=generator)
    labels_NS = torch.full_like(ids_NS, IGNORED)
    answer_N1 = torch.randint(_SYMBOLS, (num, 1), generator=generator)
    place_NQ = 2 * torch.rand(num, LENGTH // 2, generator=generator).argsort(dim=1)[:, :_APPEARANCES].sort(dim=1).values
    ids_NS.scatter_(1, place_NQ, _SYMBOLS)
    ids_NS.scatter_(1, place_NQ + 1, answer_N1.expand(-1, _APPEARANCES))
    labels_NS.scatter_(1, place_NQ[:, 1:], answer_N1.expand(-1, _APPEARANCES - 1))
    return Examples(ids_NS, labels_NS)


def _blank(num: int, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((num, LENGTH), blank), torch.full((num, LENGTH), IGNORED)


TASKS: dict[str, Task] = {
    "mqar": Task(
        meaning="associative recall of several pairs",
        vocab_size=_KEYS + _VALUES + 1,
        chance=1 / _VALUES,
        trained="4 pairs",
        variants={f"{pairs} pairs": partial(associative_recall, pairs) for pairs in (2, 4, 8)},
    ),
    "copying": Task("a sequence repeated", _SYMBOLS + 1, 1 / _SYMBOLS, "copied", {"copied": copying}),
    "induction": Task("what followed a mark", _SYMBOLS + 1, 1 / _SYMBOLS, "induced", {"induced": induction}),
}
"""Every task by name."""
