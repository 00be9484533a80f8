"""Sums up samples: median, quartiles, and two ratios that must agree before one is believed."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from moe_hf.bench.harness.timing import Samples


class Spread(NamedTuple):
    """Median and quartiles of `samples` samples."""

    median: float
    low: float
    high: float
    samples: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of a single value all three are that value, of none they are not a number.

    >>> spread([3.0, 1.0, 2.0, 5.0, 4.0])
    Spread(median=3.0, low=2.0, high=4.0, samples=5)
    """
    if not values:
        return Spread(math.nan, math.nan, math.nan, 0)
    if len(values) < 2:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


class Ratio(NamedTuple):
    """How many times longer one arm takes than another.

    `of_medians` divides the medians. `paired` is the median of the ratios within each round that has both: a burst of
    other load shifts the first and hardly the second. Where they differ by much, the machine was not quiet.
    """

    of_medians: float
    paired: float


def ratio(above: Samples, below: Samples) -> Ratio:
    """The time of `above` over that of `below`.

    >>> ratio(Samples(1, [2.0, 4.0, 9.0], [0, 1, 2]), Samples(1, [1.0, 2.0], [0, 1]))
    Ratio(of_medians=2.6666666666666665, paired=2.0)
    """
    of_round = dict(zip(below.rounds, below.seconds, strict=True))
    pairs = [
        seconds / of_round[number]
        for number, seconds in zip(above.rounds, above.seconds, strict=True)
        if number in of_round
    ]
    of_medians = spread(above.seconds).median / spread(below.seconds).median
    return Ratio(of_medians, statistics.median(pairs) if pairs else of_medians)
