"""BM25 against its formula, over an index that changes."""

import math

import pytest

from moe_hf.memory.lexical import LexicalIndex


def test_scores_are_those_of_the_formula():
    index = LexicalIndex()
    for item, text in enumerate(["a red ball", "the ball, the ball and the red door", "a blue door"]):
        index.add(item, text)
    scores = index.scores("Ball!")
    rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (3 + 8 + 3) / 3
    for item, count, length in ((0, 1, 3), (1, 2, 8)):
        expected = rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))
        assert scores[item] == pytest.approx(expected)
    assert 2 not in scores


def test_a_removed_text_leaves_no_trace():
    index, fresh = LexicalIndex(), LexicalIndex()
    index.add(0, "a red ball")
    index.add(1, "a blue ball")
    index.remove(0, "a red ball")
    fresh.add(1, "a blue ball")
    assert index.scores("red blue ball") == fresh.scores("red blue ball")
    index.remove(1, "a blue ball")
    assert index.scores("ball") == {}
    assert not index._postings
