"""The working set: a sample of a stream that grows with the logarithm of its length, finer for what is recent.

Shapes: N items, D width, C survivors of a level.
"""

from typing import Any

import numpy

from moe_hf.memory.arrays import checked_size


class Levels:
    """At most C (log2(N / C) + 1) of N items, in the manner of a binary counter.

    C new items fill the lowest level. A level that is full already meets the one that comes in: of both, which stand
    for equally many items, the C with the largest keys survive and move up. With keys that are drawn as in A-Res
    (Efraimidis and Spirakis 2006) a level is a sample of its stretch of the stream by weight.

    Args:
        size: C.
        seed: of the draws.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seen = checked_size("size", size), 0
        self._random = numpy.random.default_rng(seed)
        self._fresh: list[tuple[int, float]] = []
        # By level: the items (their places in the stream) and keys, or None.
        self._full: list[tuple[numpy.ndarray, numpy.ndarray] | None] = []

    def __len__(self) -> int:
        return len(self._fresh) + sum(self.size for level in self._full if level is not None)

    @property
    def items(self) -> numpy.ndarray:
        """The places in the stream of the items that are kept, the newest first."""
        kept = [numpy.array([item for item, _ in self._fresh], dtype=numpy.int64)]
        kept += [level[0] for level in self._full if level is not None]
        return numpy.sort(numpy.concatenate(kept))[::-1]

    def add(self, weight_N: numpy.ndarray) -> None:
        """Offer items, of these weights > 0, one after the other."""
        key_N = numpy.log(1.0 - self._random.random(len(weight_N))) / weight_N
        for key in key_N.tolist():
            self._fresh.append((self.seen, key))
            self.seen += 1
            if len(self._fresh) == self.size:
                items, keys = zip(*self._fresh, strict=True)
                self._fresh = []
                self._carry(numpy.array(items, dtype=numpy.int64), numpy.array(keys))

    def _carry(self, item_C: numpy.ndarray, key_C: numpy.ndarray) -> None:
        for level, held in enumerate(self._full):
            if held is None:
                self._full[level] = (item_C, key_C)
                return
            item_C, key_C = numpy.concatenate([held[0], item_C]), numpy.concatenate([held[1], key_C])
            best = numpy.argsort(-key_C, kind="stable")[: self.size]
            item_C, key_C = item_C[best], key_C[best]
            self._full[level] = None
        self._full.append((item_C, key_C))

    def state_dict(self) -> dict[str, Any]:
        """Everything, as what JSON holds."""
        return {
            "seen": self.seen,
            "fresh": [list(each) for each in self._fresh],
            "full": [None if level is None else [level[0].tolist(), level[1].tolist()] for level in self._full],
            "random": self._random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the levels of `state` stood."""
        self.seen = int(state["seen"])
        self._fresh = [(int(item), float(key)) for item, key in state["fresh"]]
        self._full = [
            None if level is None else (numpy.array(level[0], dtype=numpy.int64), numpy.array(level[1], dtype=float))
            for level in state["full"]
        ]
        self._random.bit_generator.state = state["random"]
