"""Ranks short texts by the words that they share with a question: BM25 over an index that grows and shrinks."""

import math
import re
from collections import Counter

_WORD = re.compile(r"\w+", re.UNICODE)
# Robertson and Zaragoza 2009: how soon a repeated word stops counting, and how much long texts are held back.
_K1, _B = 1.2, 0.75


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case.

    >>> words_of("Ada's door-code: 4417")
    ['ada', 's', 'door', 'code', '4417']
    """
    return _WORD.findall(text.lower())


class LexicalIndex:
    """BM25 (Robertson et al. 1994) over texts by id."""

    def __init__(self) -> None:
        self._postings: dict[str, dict[int, int]] = {}
        self._lengths: dict[int, int] = {}
        self._total = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, item: int, text: str) -> None:
        """Enter a text under an id that is not in use."""
        words = Counter(words_of(text))
        for word, count in words.items():
            self._postings.setdefault(word, {})[item] = count
        self._lengths[item] = words.total()
        self._total += words.total()

    def remove(self, item: int, text: str) -> None:
        """Take out what `add` entered with the same text."""
        for word in set(words_of(text)):
            posting = self._postings[word]
            del posting[item]
            if not posting:
                del self._postings[word]
        self._total -= self._lengths.pop(item)

    def scores(self, question: str) -> dict[int, float]:
        """The score > 0 of every text that shares a word with the question."""
        found: dict[int, float] = {}
        mean = self._total / len(self._lengths) if self._lengths else 0.0
        for word in set(words_of(question)):
            posting = self._postings.get(word, {})
            rarity = math.log1p((len(self._lengths) - len(posting) + 0.5) / (len(posting) + 0.5))
            for item, count in posting.items():
                held_back = _K1 * (1 - _B + _B * self._lengths[item] / mean)
                found[item] = found.get(item, 0.0) + rarity * count * (_K1 + 1) / (count + held_back)
        return found
