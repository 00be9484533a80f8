"""A memory of two tiers: a working set that grows with the logarithm of the stream, and an archive of everything.

Shapes: N vectors, D width, M width of a code.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy

from moe_hf.base.errors import CheckpointError, reading
from moe_hf.base.files import atomic_file
from moe_hf.memory.arrays import Vectors, as_rows, checked_weights
from moe_hf.memory.compressor import StreamingCompressor
from moe_hf.memory.store_file import read_arrays
from moe_hf.memory.vector_store import Filter, Found, Metadata, VectorStore

ARCHIVE, HOT, VERSION = "archive.npz", "hot.npz", 1


class HierarchicalMemory:
    """Remembers vectors: all of them in an archive of 8 bits, a few in a working set with codes of M numbers.

    A search goes to the archive, which is what keeps facts: the working set alone loses most of them. It is for
    what has to stay small, such as vectors that a model reads in place of tokens.

    Args:
        dim: D.
        compressed_dim: M.
        capacity: of the sample that the encoder of the working set is fitted to.
        encoder: the name of what made the vectors.
        seed: of the draws.

    Raises:
        ConfigError: a size that is not allowed.
    """

    def __init__(
        self, dim: int, compressed_dim: int, capacity: int = 1024, encoder: str | None = None, seed: int = 0
    ) -> None:
        self.hot = StreamingCompressor(dim, compressed_dim, capacity, seed=seed)
        self.archive = VectorStore(dim, precision="int8", encoder=encoder)
        self._sizes = {"dim": dim, "compressed_dim": compressed_dim, "capacity": capacity}

    def __len__(self) -> int:
        return len(self.archive)

    def add(
        self, vectors: Vectors, metadata: Metadata | Sequence[Metadata] | None = None, weights: Any = None
    ) -> list[int]:
        """Remember vectors.

        Args:
            vectors: (N, D), or (D,) for one.
            metadata: of each, as in `VectorStore.add`.
            weights: N numbers > 0; what weighs more outlasts the rest in the working set.

        Returns:
            Their ids.

        Raises:
            ConfigError: a wrong shape or weight; nothing is kept then.
        """
        rows_ND = as_rows(vectors, self.hot.dim)
        weight_N = checked_weights(weights, len(rows_ND))
        ids = self.archive.add(rows_ND, metadata)
        self.hot.add(rows_ND, weight_N)
        return ids

    def search(self, query: Vectors, k: int = 5, *, where: Filter | None = None, words: str | None = None) -> Any:
        """As `VectorStore.search`, over everything: vectors, out of 8 bits, on the query's device and in its type."""
        return self.archive.search(query, k, where=where, words=words)

    def search_hot(self, query: Vectors, k: int = 5) -> Found | list[Found]:
        """The like among the working set alone; ids are places in the stream, counted from 0, without metadata."""
        hot = VectorStore(self.hot.dim)
        # Oldest first, so that of equal vectors the newest comes first.
        hot.add(self.hot.vectors()[::-1])
        found = hot.search(query, k)
        places = self.hot.places[::-1]
        several = found if isinstance(found, list) else [found]
        named = [each._replace(ids=places[each.ids].tolist()) for each in several]
        return named if isinstance(found, list) else named[0]

    def delete(self, ids: Sequence[int]) -> int:
        """Forget vectors of the archive, from its file with the next `save`.

        The working set, which has vectors but no metadata, keeps what it holds of them until it is pushed out.
        """
        return self.archive.delete(ids)

    def save(self, folder: str | Path) -> None:
        """Write both tiers into a folder, each file whole or not at all.

        Raises:
            CheckpointError: another process has changed the archive meanwhile.
        """
        folder = Path(folder)
        state = self.hot.state_dict()
        arrays = {name: value for name, value in state.items() if isinstance(value, numpy.ndarray)}
        sample = state["sample"]
        arrays |= {f"sample_{name}": sample[name] for name in ("rows", "keys")}
        rest = {name: value for name, value in state.items() if name not in arrays and name != "sample"}
        rest["sample"] = {name: value for name, value in sample.items() if name not in ("rows", "keys")}
        text = json.dumps({"version": VERSION, "sizes": self._sizes, "state": rest})
        # First the archive, whose save may be refused.
        self.archive.save(folder / ARCHIVE)
        with atomic_file(folder / HOT, private=True) as aside, open(aside, "wb") as stream:
            numpy.savez(stream, state=numpy.frombuffer(text.encode(), dtype=numpy.uint8), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: str | Path, encoder: str | None = None) -> Self:
        """The memory that `save` wrote.

        Raises:
            CheckpointError: files that are missing, damaged, of a newer version, or of another encoder.
        """
        folder = Path(folder)
        archive = VectorStore.load(folder / ARCHIVE, encoder=encoder)
        if not (folder / HOT).is_file():
            raise CheckpointError(f"there is no working set at {folder / HOT}; name a folder that save wrote")
        with reading(f"the working set {folder / HOT}"):
            arrays = read_arrays(folder / HOT)
            stored = json.loads(arrays.pop("state").tobytes())
            if stored["version"] != VERSION:
                raise CheckpointError(
                    f"{folder / HOT} is of version {stored['version']!r}, and this package reads {VERSION}; "
                    "update moe_hf"
                )
            memory = cls(**stored["sizes"], encoder=archive.encoder)
            state = {**stored["state"], **arrays}
            state["sample"] = {
                **stored["state"]["sample"],
                **{name: arrays[f"sample_{name}"] for name in ("rows", "keys")},
            }
            memory.hot.load_state_dict(state)
            if memory.hot.dim != archive.dim:
                raise CheckpointError(
                    f"{folder} holds an archive of dim={archive.dim} and a working set of {memory.hot.dim}"
                )
        memory.archive = archive
        return memory
