"""Vectors of numpy and torch, in and out, and in 8 bits."""

import numpy
import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.memory.arrays import as_rows, checked_size, from_int8, like, to_int8


@pytest.mark.parametrize("given", [torch.ones(2, 3, dtype=torch.bfloat16), numpy.ones((2, 3)), [[1, 1, 1], [1, 1, 1]]])
def test_any_vectors_become_float32_rows_and_come_back_as_they_were(given):
    rows = as_rows(given, 3)
    assert rows.dtype == numpy.float32
    assert rows.shape == (2, 3)
    back = like(rows, given)
    if isinstance(given, torch.Tensor):
        assert back.dtype == given.dtype
    else:
        assert back.dtype == (numpy.float64 if isinstance(given, numpy.ndarray) else numpy.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [(numpy.ones((2, 4)), r"\(2, 4\)"), (numpy.ones((1, 2, 3)), "must be"), (numpy.full(3, numpy.nan), "not finite")],
)
def test_wrong_vectors_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        as_rows(given, 3)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, None])
def test_a_size_is_a_positive_integer(size):
    with pytest.raises(ConfigError, match="dim="):
        checked_size("dim", size)


def test_eight_bits_lose_little_and_rounding_again_nothing():
    rows = numpy.random.default_rng(0).normal(size=(50, 16)).astype(numpy.float32)
    rows[3] = 0
    back = from_int8(*to_int8(rows))
    assert (numpy.abs(back - rows) <= numpy.abs(rows).max(axis=1, keepdims=True) / 254 + 1e-7).all()
    numpy.testing.assert_allclose(from_int8(*to_int8(back)), back, rtol=1e-6)
