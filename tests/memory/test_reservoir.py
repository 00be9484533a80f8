"""The reservoir is uniform, or by weight; batches and merges change nothing."""

import numpy
import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.memory.reservoir import ReservoirBuffer
from tests.memory.chance import p_value


def numbers(start, stop):
    return numpy.arange(start, stop, dtype=numpy.float32)[:, None]


def times_kept(make, items, trials):
    count = numpy.zeros(items)
    for seed in range(trials):
        count[make(seed).rows[:, 0].astype(int)] += 1
    return count


def plain(seed, items=12):
    buffer = ReservoirBuffer(1, 4, seed=seed)
    for item in range(items):
        buffer.add(numbers(item, item + 1))
    return buffer


def merged(seed):
    first, second = ReservoirBuffer(1, 4, seed=2 * seed), ReservoirBuffer(1, 4, seed=2 * seed + 1)
    first.add(numbers(0, 8))
    second.add(numbers(8, 10))
    first.merge(second)
    first.add(numbers(10, 12))
    return first


@pytest.mark.parametrize("make", [plain, merged])
def test_every_item_is_kept_equally_often(make):
    trials = 4000
    count = times_kept(make, 12, trials)
    assert count.sum() == 4 * trials
    assert p_value(count) > 0.01


@pytest.mark.slow
def test_every_item_is_kept_equally_often_in_many_trials():
    assert p_value(times_kept(plain, 12, 100_000)) > 0.01


def test_pairs_are_kept_as_often_as_chance_says():
    trials = 4000
    together = sum({0, 11} <= set(plain(seed).rows[:, 0].astype(int).tolist()) for seed in range(trials))
    expected = 4 / 12 * 3 / 11
    assert abs(together / trials - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5


@pytest.mark.parametrize("weighted", [False, True])
def test_how_additions_are_batched_changes_nothing(weighted):
    rows = numpy.random.default_rng(0).normal(size=(500, 3)).astype(numpy.float32)
    weights = numpy.linspace(0.5, 4, 500) if weighted else None
    kept = []
    for cuts in ([500], [1] * 500, [7, 100, 1, 392], [0, 499, 1]):
        buffer, start = ReservoirBuffer(3, 16, weighted, seed=5), 0
        for size in cuts:
            part = slice(start, start + size)
            buffer.add(rows[part], None if weights is None else weights[part])
            start += size
        assert buffer.seen == 500
        kept.append(buffer.rows)
    for other in kept[1:]:
        numpy.testing.assert_array_equal(kept[0], other)


def test_a_heavy_item_is_kept_more_often_and_merging_keeps_it_so():
    first = second = 0
    for seed in range(2000):
        buffer, other = (ReservoirBuffer(1, 1, weighted=True, seed=2 * seed + part) for part in (0, 1))
        buffer.add(numbers(0, 2), [3.0, 1.0])
        first += buffer.rows[0, 0] == 0
        other.add(numbers(2, 3), [4.0])
        second += buffer.merge(other).rows[0, 0] == 2
    # Of one place an item gets its share of the weights: 3 of 4, then 4 of 8.
    assert abs(first / 2000 - 0.75) < 0.04
    assert abs(second / 2000 - 0.5) < 0.045


def test_a_state_goes_on_where_it_stood():
    buffer = ReservoirBuffer(1, 4, seed=1)
    buffer.add(numbers(0, 50))
    again = ReservoirBuffer(1, 4, seed=9)
    again.load_state_dict(buffer.state_dict())
    for each in (buffer, again):
        each.add(numbers(50, 900))
    numpy.testing.assert_array_equal(buffer.rows, again.rows)


def test_wrong_use_is_refused():
    with pytest.raises(ConfigError, match="weights are for"):
        ReservoirBuffer(1, 4).add(numbers(0, 2), [1, 1])
    weighted = ReservoirBuffer(1, 4, weighted=True)
    for weights in ([1], [1, 0], [1, numpy.inf]):
        with pytest.raises(ConfigError, match="weights"):
            weighted.add(numbers(0, 2), weights)
    assert weighted.seen == 0
    with pytest.raises(ConfigError, match="do not merge"):
        weighted.merge(ReservoirBuffer(1, 4))
