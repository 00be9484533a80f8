"""Vectors with metadata, found again by nearness, by words, or by both.

Shapes: N vectors, D width, Q queries.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy
from filelock import FileLock, Timeout

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.memory.arrays import Vectors, as_rows, checked_size, from_int8, like, to_int8
from moe_hf.memory.lexical import LexicalIndex
from moe_hf.memory.store_file import read_header, read_store, write_store

METRICS = ("cosine", "dot", "l2")
PRECISIONS = ("float32", "int8")
Metadata = Mapping[str, Any]
Filter = Metadata | Callable[[Metadata], bool]

# Cormack et al. 2009: what is added to a rank before it is inverted, so that the first places do not decide alone.
_RANK_OFFSET = 60
# Places of each ranking that are fused, at least.
_FUSED = 50
# More than float32 loses in a score, of its scale.
_ROUNDING = 1e-4


class Found(NamedTuple):
    """What a search found for one query, the best first: vectors (k, D), metadata, ids and scores (k,)."""

    vectors: Any
    metadata: list[dict[str, Any]]
    ids: list[int]
    scores: list[float]


class VectorStore:
    """Exact search over vectors of any encoder, numpy's or torch's.

    Args:
        dim: D.
        metric: "cosine", "dot" or "l2"; scores are larger for nearer vectors (the negative squared distance for "l2").
        precision: "int8" rounds each vector to 8 bits with a scale of its own when it is added, for files of a quarter
            of the size.
        encoder: the name of what made the vectors; a file of another encoder is refused.

    Raises:
        ConfigError: a size, metric or precision that is not allowed.
    """

    def __init__(
        self, dim: int, metric: str = "cosine", precision: str = "float32", encoder: str | None = None
    ) -> None:
        for name, value, allowed in (("metric", metric, METRICS), ("precision", precision, PRECISIONS)):
            if value not in allowed:
                raise ConfigError(f"{name}={value!r} is not allowed; it must be one of {', '.join(allowed)}")
        self.dim, self.metric, self.precision, self.encoder = checked_size("dim", dim), metric, precision, encoder
        self._rows = numpy.empty((0, dim), numpy.float32)
        self._ids = numpy.empty(0, numpy.int64)
        self._metadata: list[dict[str, Any]] = []
        self._used = 0
        self._next_id = 0
        self._words = LexicalIndex()
        # Which state of a file this store goes back to; None before it was saved or loaded.
        self._generation: str | None = None

    def __len__(self) -> int:
        return self._used

    def add(self, vectors: Vectors, metadata: Metadata | Sequence[Metadata] | None = None) -> list[int]:
        """Keep vectors; amortised, one costs no more in a large store than in a small one.

        Args:
            vectors: (N, D), or (D,) for one.
            metadata: of each vector, what JSON can hold; its "text" is what search by words looks at.

        Returns:
            Their ids, which are never given again.

        Raises:
            ConfigError: a wrong shape, numbers that are not finite, or not one metadata for each vector.
        """
        rows_ND = as_rows(vectors, self.dim)
        if isinstance(metadata, Mapping):
            metadata = [metadata]
        given = [{} for _ in rows_ND] if metadata is None else [dict(each) for each in metadata]
        if len(given) != len(rows_ND):
            raise ConfigError(f"{len(rows_ND)} vectors with {len(given)} metadata are not allowed; give one for each")
        if self.precision == "int8":
            rows_ND = from_int8(*to_int8(rows_ND))
        ids = list(range(self._next_id, self._next_id + len(rows_ND)))
        self._append(rows_ND, numpy.array(ids, dtype=numpy.int64), given)
        self._next_id += len(rows_ND)
        return ids

    def _append(self, rows_ND: numpy.ndarray, id_N: numpy.ndarray, metadata: list[dict[str, Any]]) -> None:
        used = self._used + len(rows_ND)
        if used > len(self._rows):
            room = max(used, 2 * len(self._rows))
            self._rows, self._ids = _grown(self._rows, self._used, room), _grown(self._ids, self._used, room)
        self._rows[self._used : used], self._ids[self._used : used] = rows_ND, id_N
        self._metadata += metadata
        self._used = used
        for item, each in zip(id_N.tolist(), metadata, strict=True):
            if isinstance(each.get("text"), str):
                self._words.add(item, each["text"])

    def delete(self, ids: Sequence[int]) -> int:
        """Forget vectors and their metadata, from memory now and from a file with the next `save`.

        Returns:
            How many there were.
        """
        going = set(ids)
        kept = [place for place, item in enumerate(self._ids[: self._used].tolist()) if item not in going]
        for item, metadata in zip(self._ids[: self._used].tolist(), self._metadata, strict=True):
            if item in going and isinstance(metadata.get("text"), str):
                self._words.remove(item, metadata["text"])
        gone = self._used - len(kept)
        if gone:
            self._rows, self._ids = self._rows[kept], self._ids[kept]
            self._metadata = [self._metadata[place] for place in kept]
            self._used = len(kept)
        return gone

    def search(
        self, query: Vectors, k: int = 5, *, where: Filter | None = None, words: str | None = None
    ) -> Found | list[Found]:
        """The k best vectors for each query; of equal ones the newest comes first.

        Args:
            query: (D,), or (Q, D) for several.
            k: at most so many are found.
            where: only vectors whose metadata has these values, or for which the function says True.
            words: rank by these words as well, with BM25 over the metadata's "text", and fuse both rankings by
                reciprocal rank (Cormack et al. 2009); scores are then those of the fusion.

        Returns:
            One `Found`, or a list of one for each of several queries. Vectors are of the query's kind, type and device.

        Raises:
            ConfigError: a wrong shape, or k that is no positive integer.
        """
        checked_size("k", k)
        query_QD = as_rows(query, self.dim)
        place_N = self._places(where)
        lexical = None if words is None else self._words.scores(words)
        found = [self._found(query_D, place_N, k, lexical, query) for query_D in query_QD]
        return found[0] if numpy.ndim(query) == 1 else found

    def _places(self, where: Filter | None) -> numpy.ndarray:
        if where is None:
            return numpy.arange(self._used)
        accepts = where if callable(where) else lambda metadata: all(metadata.get(n) == v for n, v in where.items())
        return numpy.array([i for i, metadata in enumerate(self._metadata) if accepts(metadata)], dtype=numpy.int64)

    def _found(
        self, query_D: numpy.ndarray, place_N: numpy.ndarray, k: int, lexical: dict[int, float] | None, query: Vectors
    ) -> Found:
        row_ND, id_N = self._rows[place_N], self._ids[place_N]
        score_N = self._near_scores(query_D, row_ND, k if lexical is None else max(k, _FUSED))
        if lexical is not None:
            score_N = _fused(score_N, id_N, lexical, max(k, _FUSED))
        best = _largest(score_N, id_N, k)
        places = place_N[best]
        return Found(
            like(self._rows[places], query),
            [dict(self._metadata[place]) for place in places.tolist()],
            id_N[best].tolist(),
            score_N[best].tolist(),
        )

    def _near_scores(self, query_D: numpy.ndarray, row_ND: numpy.ndarray, k: int) -> numpy.ndarray:
        """The scores of whatever may be among the k best, in float64, alike for alike vectors; rough ones for the rest.

        A matrix product rounds by the place of a row, so that equal vectors get scores that are not quite equal.
        """
        rough_N = self._scores(query_D, row_ND)
        score_N = rough_N.astype(numpy.float64)
        if not len(row_ND):
            return score_N
        near = numpy.arange(len(row_ND))
        if k < len(row_ND):
            least = float(numpy.partition(rough_N, -k)[-k])
            near = numpy.flatnonzero(rough_N >= least - _ROUNDING * self._scale(query_D, row_ND, least))
        score_N[near] = self._scores(query_D.astype(numpy.float64), row_ND[near].astype(numpy.float64))
        return score_N

    def _scores(self, query_D: numpy.ndarray, row_ND: numpy.ndarray) -> numpy.ndarray:
        if self.metric == "l2":
            # Not by the squares' difference, which cancels far from the origin.
            return -numpy.square(row_ND - query_D).sum(axis=1)
        # A product in float32 is fast; in float64, for few rows, each row is summed in the same way.
        product_N = row_ND @ query_D if row_ND.dtype == numpy.float32 else (row_ND * query_D).sum(axis=1)
        if self.metric == "dot":
            return product_N
        norm_N = numpy.sqrt(numpy.square(row_ND).sum(axis=1) * numpy.square(query_D).sum())
        return numpy.divide(product_N, norm_N, out=numpy.zeros_like(product_N), where=norm_N > 0)

    def _scale(self, query_D: numpy.ndarray, row_ND: numpy.ndarray, least: float) -> float:
        """What a rough score's rounding is proportional to."""
        if self.metric == "cosine":
            return 1.0
        if self.metric == "l2":
            return abs(least)
        return float(numpy.linalg.norm(query_D) * numpy.sqrt(numpy.square(row_ND).sum(axis=1).max()))

    def save(self, path: str | Path) -> None:
        """Write everything to a file, whole or not at all.

        Raises:
            CheckpointError: another process has changed the file since this store was loaded from it or saved to it
                (`changing` waits for its turn instead).
            ConfigError: metadata that JSON cannot hold.
        """
        with _locked(Path(path)):
            self._save(Path(path))

    def _save(self, file: Path) -> None:
        if file.is_file() and read_header(file).get("generation") != self._generation:
            raise CheckpointError(
                f"{file} has been changed by another process, whose entries saving would lose; use "
                "VectorStore.changing(path, dim), or save under another name"
            )
        rows_ND = self._rows[: self._used]
        arrays: dict[str, numpy.ndarray] = {"ids": self._ids[: self._used]}
        if self.precision == "int8":
            arrays["code"], arrays["scale"] = to_int8(rows_ND)
        else:
            arrays["rows"] = rows_ND
        generation = uuid.uuid4().hex
        own = {"dim": self.dim, "metric": self.metric, "precision": self.precision, "encoder": self.encoder}
        try:
            write_store(file, {**own, "next_id": self._next_id, "generation": generation}, arrays, self._metadata)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metadata must be what JSON can hold ({error}); nothing was written") from error
        self._generation = generation

    @classmethod
    def load(cls, path: str | Path, dim: int | None = None, encoder: str | None = None) -> Self:
        """The store that `save` wrote.

        Args:
            path: of the file.
            dim, encoder: what the vectors have to be of; None takes the file's.

        Raises:
            CheckpointError: no such file, a damaged one, one of a newer version, or one of another width or encoder.
        """
        header, arrays, metadata = read_store(Path(path))
        for name, wanted in (("dim", dim), ("encoder", encoder)):
            if wanted is not None and header.get(name) != wanted:
                raise CheckpointError(
                    f"{path} holds vectors of {name}={header.get(name)!r}, and {wanted!r} was asked for; "
                    "name another file, or encode its texts again"
                )
        try:
            store = cls(header["dim"], header["metric"], header["precision"], header["encoder"])
            rows_ND = from_int8(arrays["code"], arrays["scale"]) if store.precision == "int8" else arrays["rows"]
            rows_ND, id_N, next_id = as_rows(rows_ND, store.dim), arrays["ids"], int(header["next_id"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"the vector store {path} is damaged ({error})") from error
        ordered = id_N.dtype == numpy.int64 and id_N.ndim == 1 and bool((numpy.diff(id_N) > 0).all())
        plain = all(isinstance(each, dict) for each in metadata)
        sizes = {len(rows_ND), len(id_N), len(metadata)} if ordered else set()
        if len(sizes) != 1 or not plain or (len(id_N) and not 0 <= id_N[0] <= id_N[-1] < next_id):
            raise CheckpointError(f"the vector store {path} is damaged: its vectors, ids and metadata do not agree")
        store._append(rows_ND, id_N, metadata)
        store._next_id, store._generation = next_id, header.get("generation")
        return store

    @classmethod
    @contextmanager
    def changing(
        cls, path: str | Path, dim: int, encoder: str | None = None, seconds: float = 10.0, **own: Any
    ) -> Iterator[Self]:
        """The store of a file, or a new one, to change; saved on leaving without an error, by one process at a time.

        Args:
            path: of the file.
            dim, encoder: as in `load`.
            seconds: to wait for other processes.
            **own: further arguments of a new store.

        Raises:
            CheckpointError: as `load`, or another process holds the store for too long.
        """
        file = Path(path)
        with _locked(file, seconds):
            store = cls.load(file, dim, encoder) if file.is_file() else cls(dim, encoder=encoder, **own)
            yield store
            store._save(file)


@contextmanager
def _locked(file: Path, seconds: float = 10.0) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Beside the file, which each save replaces: a lock on it would be on the old one.
        with FileLock(file.with_name(file.name + ".lock"), timeout=seconds):
            yield
    except Timeout:
        raise CheckpointError(
            f"another process has held {file} for {seconds:g} seconds; try again, or stop that process"
        ) from None


def _grown(rows: numpy.ndarray, used: int, room: int) -> numpy.ndarray:
    larger = numpy.empty((room, *rows.shape[1:]), rows.dtype)
    larger[:used] = rows[:used]
    return larger


def _largest(score_N: numpy.ndarray, id_N: numpy.ndarray, k: int) -> numpy.ndarray:
    """The places of the k largest scores, of equal ones the largest id first."""
    candidates = numpy.arange(len(score_N))
    if k < len(score_N):
        # All that tie with the k-th: which of them come in is for their ids to say.
        candidates = numpy.flatnonzero(score_N >= numpy.partition(score_N, -k)[-k])
    order = numpy.lexsort((-id_N[candidates], -score_N[candidates]))
    return candidates[order[:k]]


def _fused(score_N: numpy.ndarray, id_N: numpy.ndarray, lexical: Mapping[int, float], places: int) -> numpy.ndarray:
    word_N = numpy.array([lexical.get(item, 0.0) for item in id_N.tolist()])
    fused_N = numpy.zeros(len(score_N))
    for ranking_N, counts in ((score_N, numpy.ones(len(score_N), bool)), (word_N, word_N > 0)):
        best = _largest(ranking_N, id_N, places)
        best = best[counts[best]]
        fused_N[best] += 1 / (_RANK_OFFSET + 1 + numpy.arange(len(best)))
    return fused_N
