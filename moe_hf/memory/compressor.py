"""Vectors of a stream in fewer numbers each, and fewer of them: a linear autoencoder over a logarithmic working set.

Shapes: N vectors, D width, M width of a code.
"""

from typing import Any

import numpy

from moe_hf.base.errors import ConfigError
from moe_hf.memory.arrays import Vectors, as_rows, checked_size, checked_weights, from_int8, like, to_int8
from moe_hf.memory.levels import Levels
from moe_hf.memory.reservoir import ReservoirBuffer

# New vectors that are rebuilt so much worse than the sample was when the encoder was fitted ask for a new fit. They
# are looked at so many together: a single one says little.
_DRIFT, _WINDOW = 1.25, 256


class StreamingCompressor:
    """Keeps a working set of a stream that grows with its logarithm, and encodes vectors in M numbers.

    The autoencoder is linear with tied weights, and fitted in closed form to a uniform sample of the stream: its least
    squared error is that of the M principal components (Baldi and Hornik 1989), which no gradient step betters. It is
    fitted again when new vectors are rebuilt markedly worse than the sample was.

    Rank by `search` of full vectors, not by codes: those lose neighbours. The working set alone forgets most facts.

    Args:
        dim: D.
        compressed_dim: M <= D.
        capacity: of the sample that the autoencoder is fitted to.
        level_size: of the working set's levels.
        seed: of the draws.

    Raises:
        ConfigError: a size that is no positive integer, or M > D.
    """

    def __init__(
        self, dim: int, compressed_dim: int, capacity: int = 1024, level_size: int = 64, seed: int = 0
    ) -> None:
        self.dim, self.compressed_dim = checked_size("dim", dim), checked_size("compressed_dim", compressed_dim)
        if compressed_dim > dim:
            raise ConfigError(f"compressed_dim={compressed_dim} is not allowed; it must be in [1, dim={dim}]")
        self.sample = ReservoirBuffer(dim, capacity, seed=seed)
        self._levels = Levels(level_size, seed + 1)
        self._held = numpy.empty(0, dtype=numpy.int64)
        self._code, self._scale = numpy.empty((0, dim), numpy.int8), numpy.empty((0, 1), numpy.float32)
        self._mean, self._basis = numpy.zeros(dim, numpy.float32), numpy.empty((0, dim), numpy.float32)
        self._error, self._recent = 0.0, 0.0
        self.explained_variance_ = 0.0

    @property
    def seen(self) -> int:
        """Vectors added so far."""
        return self.sample.seen

    @property
    def working_set_size(self) -> int:
        """Vectors that are kept, at most `level_size * (log2(seen / level_size) + 1)` once a level is full."""
        return len(self._held)

    @property
    def places(self) -> numpy.ndarray:
        """Which additions the working set holds, counted from 0, the newest first."""
        return self._held

    def add(self, vectors: Vectors, weights: Any = None) -> None:
        """Take in vectors, one after the other; those of larger weight outlast others in the working set.

        Args:
            vectors: (N, D).
            weights: N numbers > 0; all alike where left out.

        Raises:
            ConfigError: a wrong shape, or weights that are not positive.
        """
        rows_ND = as_rows(vectors, self.dim)
        weight_N = checked_weights(weights, len(rows_ND))
        first = self.seen
        self._levels.add(weight_N)
        self._hold(rows_ND, first)
        # Cut where a fit is due, so that it does not matter how the stream comes in.
        while len(rows_ND):
            count = min(len(rows_ND), self._until_due())
            self._learn(rows_ND[:count])
            rows_ND = rows_ND[count:]

    def _until_due(self) -> int:
        """Vectors until the encoder is looked at again: when as many have come as before, until the sample is full."""
        window = _WINDOW - self.seen % _WINDOW
        if self.seen >= self.sample.capacity:
            return window
        doubled = 1 << self.seen.bit_length()
        return min(window, min(doubled, self.sample.capacity) - self.seen)

    def _learn(self, rows_ND: numpy.ndarray) -> None:
        self.sample.add(rows_ND)
        if len(self._basis):
            self._recent += float(numpy.square(rows_ND - self._decoded(self._encoded(rows_ND))).sum())
        seen, full = self.seen, self.sample.capacity
        grown = seen <= full and (seen & (seen - 1) == 0 or seen == full)
        if grown or (seen % _WINDOW == 0 and self._recent / _WINDOW > _DRIFT * self._error):
            self.fit()
        if seen % _WINDOW == 0:
            self._recent = 0.0

    def _hold(self, rows_ND: numpy.ndarray, first: int) -> None:
        """Bring codes and scales to what the levels hold now."""
        wanted = self._levels.items
        code_ND, scale_N1 = to_int8(rows_ND)
        place = {item: index for index, item in enumerate(self._held.tolist())}
        offset = len(self._held)
        order = [place[item] if item < first else offset + item - first for item in wanted.tolist()]
        self._code = numpy.concatenate([self._code, code_ND])[order]
        self._scale = numpy.concatenate([self._scale, scale_N1])[order]
        self._held = wanted

    def fit(self) -> None:
        """Fit the autoencoder to the sample of all that was added; its codes mean something else afterwards.

        Raises:
            ConfigError: nothing was added yet.
        """
        rows_ND = self.sample.rows.astype(numpy.float64)
        if not len(rows_ND):
            raise ConfigError("nothing was added yet, so there is nothing to fit to; add vectors first")
        mean_D = rows_ND.mean(axis=0)
        centred_ND = rows_ND - mean_D
        # Of D x D, not N x D: the sample may be long.
        value_D, vector_DD = numpy.linalg.eigh(centred_ND.T @ centred_ND / len(rows_ND))
        kept = slice(None, -self.compressed_dim - 1, -1)
        self._mean = mean_D.astype(numpy.float32)
        self._basis = numpy.ascontiguousarray(vector_DD[:, kept].T.astype(numpy.float32))
        whole = float(numpy.maximum(value_D, 0).sum())
        self._error = max(whole - float(value_D[kept].sum()), 0.0)
        self.explained_variance_ = 1.0 if whole == 0 else 1 - self._error / whole

    def encode(self, vectors: Vectors) -> Any:
        """Codes (N, M) of vectors (N, D), of their kind; `fit` has to have been called, as the first `add` does."""
        self._require_fit()
        return like(self._encoded(as_rows(vectors, self.dim)), vectors)

    def decode(self, codes: Vectors) -> Any:
        """Vectors (N, D) out of codes (N, M), of their kind."""
        self._require_fit()
        return like(self._decoded(as_rows(codes, self.compressed_dim)), codes)

    def _encoded(self, rows_ND: numpy.ndarray) -> numpy.ndarray:
        # Fewer samples than M span fewer directions; the rest of a code is 0.
        return (rows_ND - self._mean) @ self._basis.T

    def _decoded(self, code_NM: numpy.ndarray) -> numpy.ndarray:
        return code_NM @ self._basis + self._mean

    def _require_fit(self) -> None:
        if not len(self._basis):
            raise ConfigError("the autoencoder is not fitted yet; add vectors first")

    def vectors(self) -> numpy.ndarray:
        """The working set, (N, D) float32 out of 8 bits, the newest first: what to rank by."""
        return from_int8(self._code, self._scale)

    def compressed(self) -> numpy.ndarray:
        """The codes of the working set, (N, M), the newest first."""
        self._require_fit()
        return self._encoded(self.vectors())

    def reconstruct(self) -> numpy.ndarray:
        """What the codes of the working set give back, (N, D), the newest first."""
        return self._decoded(self.compressed())

    def state_dict(self) -> dict[str, Any]:
        """Everything, as arrays and what JSON holds."""
        arrays = {name: getattr(self, f"_{name}").copy() for name in ("held", "code", "scale", "mean", "basis")}
        numbers = {"error": self._error, "recent": self._recent, "explained_variance": self.explained_variance_}
        return {**arrays, **numbers, "sample": self.sample.state_dict(), "levels": self._levels.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the compressor of `state` stood.

        Raises:
            ConfigError: it is of other sizes; nothing is changed then.
        """
        dtypes = {"held": "i8", "code": "i1", "scale": "f4", "mean": "f4", "basis": "f4"}
        arrays = {name: numpy.array(state[name], dtype=dtype) for name, dtype in dtypes.items()}
        held, fitted = len(arrays["held"]), len(arrays["basis"])
        shapes = {"code": (held, self.dim), "scale": (held, 1), "mean": (self.dim,), "basis": (fitted, self.dim)}
        wrong = {name: arrays[name].shape for name, shape in shapes.items() if arrays[name].shape != shape}
        if wrong or fitted not in (0, self.compressed_dim):
            raise ConfigError(
                f"the state is of other sizes than dim={self.dim}, {self.compressed_dim=}: {wrong or fitted}"
            )
        self.sample.load_state_dict(state["sample"])
        self._levels.load_state_dict(state["levels"])
        for name, value in arrays.items():
            setattr(self, f"_{name}", value)
        self._error, self._recent = float(state["error"]), float(state["recent"])
        self.explained_variance_ = float(state["explained_variance"])
