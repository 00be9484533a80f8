"""A sample of fixed size of a stream without end, every item equally likely to be in it, or by its weight.

Shapes: N items, D width, K capacity.
"""

import math
from typing import Any, Self

import numpy

from moe_hf.base.errors import ConfigError
from moe_hf.memory.arrays import Vectors, as_rows, checked_size, checked_weights


class ReservoirBuffer:
    """K of all vectors that were added; which, does not depend on how the additions were batched.

    Plain, it is Algorithm L (Li 1994): the number of vectors to pass over until the next one that enters is drawn, so
    that a long stream costs K (1 + log(N / K)) draws. Weighted, it is A-Res (Efraimidis and Spirakis 2006): each vector
    draws u^(1 / weight), and the K largest stay.

    Args:
        dim: D.
        capacity: K.
        weighted: whether `add` takes weights.
        seed: of the draws.
    """

    def __init__(self, dim: int, capacity: int, weighted: bool = False, seed: int = 0) -> None:
        self.dim, self.capacity = checked_size("dim", dim), checked_size("capacity", capacity)
        self.weighted, self.seen = weighted, 0
        self._random = numpy.random.default_rng(seed)
        self._rows = numpy.empty((0, dim), numpy.float32)
        # Of each kept vector: log(u) / weight, always < 0. Used by the weighted form alone.
        self._keys = numpy.empty(0)
        # Algorithm L: the largest key of a uniform sample, as a logarithm, and the vectors to pass over.
        self._log_w, self._skip = 0.0, 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> numpy.ndarray:
        """The sample, (min(N, K), D) float32, in no order that means anything."""
        return self._rows

    def add(self, vectors: Vectors, weights: Any = None) -> None:
        """Offer vectors, one after the other.

        Args:
            vectors: (N, D).
            weights: N numbers > 0, for a weighted buffer, 1 where left out; of one place each vector gets its share.

        Raises:
            ConfigError: a wrong shape, or weights that are not asked for, or not positive.
        """
        rows_ND = as_rows(vectors, self.dim)
        if self.weighted:
            self._add_weighted(rows_ND, checked_weights(weights, len(rows_ND)))
        elif weights is not None:
            raise ConfigError("weights are for ReservoirBuffer(weighted=True); leave them out")
        else:
            self._add_uniform(rows_ND)
        self.seen += len(rows_ND)

    def _add_uniform(self, rows_ND: numpy.ndarray) -> None:
        room = min(self.capacity - len(self._rows), len(rows_ND))
        if room > 0:
            self._rows = numpy.concatenate([self._rows, rows_ND[:room]])
            if len(self._rows) == self.capacity:
                self._draw_next()
        place = max(room, 0) + self._skip
        while len(self._rows) == self.capacity and place < len(rows_ND):
            self._rows[self._random.integers(self.capacity)] = rows_ND[place]
            self._draw_next()
            place += 1 + self._skip
        if len(self._rows) == self.capacity:
            self._skip = place - len(rows_ND)

    def _draw_next(self) -> None:
        self._log_w += math.log(self._uniform()) / self.capacity
        # log(1 - w), without loss where w is near 0 or 1.
        self._skip = math.floor(math.log(self._uniform()) / math.log1p(-min(math.exp(self._log_w), 1 - 2**-53)))

    def _uniform(self) -> float:
        # In (0, 1].
        return 1.0 - float(self._random.random())

    def _add_weighted(self, rows_ND: numpy.ndarray, weight_N: numpy.ndarray) -> None:
        key_N = numpy.log(1.0 - self._random.random(len(rows_ND))) / weight_N
        self._keep(numpy.concatenate([self._rows, rows_ND]), numpy.concatenate([self._keys, key_N]))

    def _keep(self, rows_ND: numpy.ndarray, key_N: numpy.ndarray) -> None:
        best = numpy.argsort(-key_N, kind="stable")[: self.capacity]
        self._rows, self._keys = rows_ND[best], key_N[best]

    def merge(self, other: "ReservoirBuffer") -> Self:
        """Become the sample of both streams together; `other` stays as it is.

        Raises:
            ConfigError: another width, capacity or kind.
        """
        kinds = [(each.dim, each.capacity, each.weighted) for each in (self, other)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"buffers of {kinds[0]} and {kinds[1]} (dim, capacity, weighted) do not merge; make them alike"
            )
        if self.weighted:
            self._keep(numpy.concatenate([self._rows, other._rows]), numpy.concatenate([self._keys, other._keys]))
        elif other.seen:
            size = min(self.capacity, self.seen + other.seen)
            mine = int(self._random.hypergeometric(self.seen, other.seen, size)) if self.seen else 0
            parts = [
                each.rows[self._random.permutation(len(each.rows))[:count]]
                for each, count in ((self, mine), (other, size - mine))
            ]
            self._rows = numpy.concatenate(parts)
        self.seen += other.seen
        if not self.weighted and len(self._rows) == self.capacity:
            # The K-th smallest of N uniform draws, as after that many additions.
            self._log_w = math.log(self._random.beta(self.capacity, max(self.seen - self.capacity, 0) + 1))
            self._skip = math.floor(math.log(self._uniform()) / math.log1p(-min(math.exp(self._log_w), 1 - 2**-53)))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything, as arrays and what JSON holds; `load_state_dict` takes it up exactly."""
        return {
            "rows": self._rows.copy(),
            "keys": self._keys.copy(),
            "seen": self.seen,
            "log_w": self._log_w,
            "skip": self._skip,
            "random": self._random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the buffer of `state` stood."""
        self._rows, self._keys = as_rows(state["rows"], self.dim).copy(), numpy.array(state["keys"], dtype=float)
        self.seen, self._log_w, self._skip = int(state["seen"]), float(state["log_w"]), int(state["skip"])
        self._random.bit_generator.state = state["random"]
