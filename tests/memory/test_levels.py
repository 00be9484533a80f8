"""The working set is small, uniform over its stretches, and goes on where it stood."""

import json
import math

import numpy
import pytest

from moe_hf.memory.levels import Levels
from tests.memory.chance import p_value


@pytest.mark.parametrize("size", [1, 3, 64])
def test_it_grows_with_the_logarithm_of_the_stream(size):
    levels = Levels(size)
    for seen in range(1, 1500):
        levels.add(numpy.ones(1))
        assert len(levels) == len(levels.items) <= max(seen if seen < size else 0, size * (math.log2(seen / size) + 1))


@pytest.mark.slow
def test_it_is_small_after_a_million():
    levels = Levels(64)
    for _ in range(100):
        levels.add(numpy.ones(10_000))
    assert len(levels) <= 64 * (math.log2(1e6 / 64) + 1)


def test_what_is_new_is_kept_and_what_is_old_thinned():
    levels = Levels(8)
    levels.add(numpy.ones(8 * 16 + 5))
    items = levels.items
    assert items[:5].tolist() == [132, 131, 130, 129, 128]
    assert len(items) == 5 + 8
    assert (numpy.diff(items) < 0).all()


def test_of_a_stretch_every_item_is_kept_equally_often_and_heavy_ones_more():
    count, heavy = numpy.zeros(32), 0
    for seed in range(2000):
        levels = Levels(4, seed)
        levels.add(numpy.ones(32))
        count[levels.items] += 1
        weighted = Levels(4, seed)
        weighted.add(numpy.where(numpy.arange(32) == 7, 20.0, 1.0))
        heavy += 7 in weighted.items
    assert p_value(count) > 0.01
    assert heavy > 4 * count[7]


def test_batches_and_saved_states_change_nothing():
    whole, parts = Levels(4, 3), Levels(4, 3)
    whole.add(numpy.ones(100))
    parts.add(numpy.ones(37))
    again = Levels(4)
    again.load_state_dict(json.loads(json.dumps(parts.state_dict())))
    again.add(numpy.ones(63))
    assert whole.items.tolist() == again.items.tolist()
