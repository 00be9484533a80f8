"""The synthetic tasks: sequences with questions that can only be answered by remembering.

Shapes: N examples, S positions, P pairs, Q questions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

LENGTH = 24
"""Tokens of every example of every task."""
IGNORED = -100
"""The label of positions that count for nothing."""

_KEYS, _VALUES = 16, 16
_SYMBOLS = 16
_COPIED = (LENGTH - 1) // 2
_APPEARANCES = 4


class Examples(NamedTuple):
    """Token ids (N, S), and what has to be answered at each (N, S); `IGNORED` where nothing is asked."""

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
    """Pairs of key and value, then nothing but keys, any of them at any time: the value of each is asked for (MQAR).

    Arora et al. 2023, Zoology, section 3, with a question at every position. The keys of the pairs are distinct. The
    values are not given again, so that the pairs are all there is to look at.
    """
    key_NP = torch.rand(num, _KEYS, generator=generator).argsort(dim=1)[:, :num_pairs]
    value_NP = torch.randint(_KEYS, _KEYS + _VALUES, (num, num_pairs), generator=generator)
    pairs = torch.stack([key_NP, value_NP], dim=2).flatten(1)
    asked_NQ = torch.randint(num_pairs, (num, LENGTH - 2 * num_pairs), generator=generator)
    ids_NS = torch.cat([pairs, key_NP.gather(1, asked_NQ)], dim=1)
    labels_NS = torch.cat([torch.full_like(pairs, IGNORED), value_NP.gather(1, asked_NQ)], dim=1)
    return Examples(ids_NS, labels_NS)


def copying(num: int, generator: torch.Generator) -> Examples:
    """Random symbols, a mark, and the same symbols in the same order: all of the second half has to be known.

    Graves et al. 2014, Neural Turing machines, section 4.1.
    """
    symbols = torch.randint(_SYMBOLS, (num, _COPIED), generator=generator)
    ids_NS = torch.full((num, LENGTH), _SYMBOLS)
    labels_NS = torch.full_like(ids_NS, IGNORED)
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
    # Even places: a mark and what follows it never overlap with another.
    place_NQ = 2 * torch.rand(num, LENGTH // 2, generator=generator).argsort(dim=1)[:, :_APPEARANCES].sort(dim=1).values
    ids_NS.scatter_(1, place_NQ, _SYMBOLS)
    ids_NS.scatter_(1, place_NQ + 1, answer_N1.expand(-1, _APPEARANCES))
    labels_NS.scatter_(1, place_NQ[:, 1:], answer_N1.expand(-1, _APPEARANCES - 1))
    return Examples(ids_NS, labels_NS)


TASKS: dict[str, Task] = {
    "mqar": Task(
        meaning="associative recall of several pairs",
        vocab_size=_KEYS + _VALUES,
        chance=1 / _VALUES,
        trained="4 pairs",
        variants={f"{pairs} pairs": partial(associative_recall, pairs) for pairs in (2, 4, 8)},
    ),
    "copying": Task("a sequence repeated", _SYMBOLS + 1, 1 / _SYMBOLS, "copied", {"copied": copying}),
    "induction": Task("what followed a mark", _SYMBOLS + 1, 1 / _SYMBOLS, "induced", {"induced": induction}),
}
"""Every task by name."""
