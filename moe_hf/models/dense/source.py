"""What is read of a dense checkpoint: unread slices of its tensors, and everything that is wrong with them at once."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.models.dense.lazy_tensors import Computed, Copied, LazyTensor, Sliced

# What may be left behind: the heads of transformers' other tasks, and tables of rotations.
_NO_WEIGHTS = re.compile(r"^(score|classifier|qa_outputs|multiple_choice_head)\.|(^|\.)(inv_freq|rotary\.\w+)$")


class DenseSource:
    """Looks up dense tensors by name and collects everything that is wrong before anything is built.

    Args:
        dense: name to unread slice.
        what: what the checkpoint is, as in "dense GPT-2".
        prefix: some checkpoints put it before the names, others do not.
        ignored: finds the names of tensors that nobody needs to read, such as masks.
    """

    def __init__(
        self, dense: Mapping[str, Any], what: str, prefix: str = "", ignored: re.Pattern | None = None
    ) -> None:
        self._dense = dense
        self._what = what
        self._prefix = prefix
        self._unread = {
            name for name in dense if not _NO_WEIGHTS.search(name) and not (ignored and ignored.search(name))
        }
        self._missing: list[str] = []
        self._misfits: list[str] = []

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return f"{self._prefix}{name}" in self._dense or name in self._dense

    def stored_name(self, *names: str) -> str:
        """The first of several names under which a tensor is stored; the first of all where there is none."""
        return next((name for name in names if self.has(name)), names[0])

    def count_layers(self, layers: str) -> int:
        """How many layers there are in the list of that name.

        >>> DenseSource({"model.layers.0.a": None, "model.layers.1.a": None}, "dense model").count_layers("layers")
        2
        """
        pattern = re.compile(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.")
        return len({match[1] for name in self._dense if (match := pattern.search(name))})

    def flat(self, name: str, shape: tuple[int, ...]) -> LazyTensor:
        """The stored tensor of that shape, such as (1, 1, D), as a vector."""
        return Computed(self.sliced(name, shape), (math.prod(shape),), torch.flatten)

    def sliced(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        transpose: bool = False,
        part: tuple[int, int] | None = None,
    ) -> Sliced:
        """The stored tensor; a stand-in when it is missing or misfits, which `raise_if_incomplete` then reports.

        Args:
            name: without the prefix.
            shape: that the stored tensor must have; None allows any.
            transpose: whether it is stored as (in, out).
            part: (i, n) takes the i-th of n equal blocks of columns.
        """
        found = self._dense.get(f"{self._prefix}{name}", self._dense.get(name))
        self._unread -= {f"{self._prefix}{name}", name}
        if found is None:
            self._missing.append(name)
            return Sliced(_Absent())
        stored = tuple(found.get_shape())
        if shape is not None and stored != shape:
            self.misfit(f"{name} of shape {stored}, but the configuration asks for {shape}")
            return Sliced(_Absent())
        columns = None
        if part is not None:
            index, count = part
            size = stored[-1] // count
            columns = slice(index * size, (index + 1) * size)
        return Sliced(found, transpose, columns)

    def head(
        self, name: str, embedding: LazyTensor, config: MoEDecoderConfig, with_head: bool, was_tied: bool
    ) -> dict[str, LazyTensor]:
        """The language-model head by our name; empty where it is tied to the embedding or not needed.

        Args:
            name: of the dense model's head.
            embedding: of the dense model.
            config: of the model to build.
            with_head: whether that model has a head.
            was_tied: whether the dense model's head is its embedding.
        """
        shape = (config.vocab_size, config.hidden_size)
        if with_head and not config.tie_word_embeddings:
            return {"lm_head.weight": Copied(embedding) if was_tied else self.sliced(name, shape)}
        if with_head and not was_tied and self.has(name):
            # Some files hold the embedding twice.
            head = self.sliced(name, shape)
            if embedding.shape == head.shape == shape and not torch.equal(head.read(), embedding.read()):
                self.misfit("a head that is not its embedding, but tie_word_embeddings=True; pass False")
        self._unread -= {f"{self._prefix}{name}", name}
        return {}

    def require(self, config: MoEDecoderConfig, **needed: Any) -> None:
        """Note every field of the configuration that has another value than the dense weights need."""
        for name, value in needed.items():
            if getattr(config, name) != value:
                self.misfit(f"what {name}={value!r} describes, but {name}={getattr(config, name)!r}")

    def misfit(self, text: str) -> None:
        """Note what the checkpoint has that the configuration does not allow."""
        self._misfits.append(text)

    def raise_if_incomplete(self) -> None:
        """Report everything that was found wrong, in one error; weights that nobody has read are wrong, too.

        Raises:
            CheckpointError: something was.
        """
        if self._missing:
            # The same tensor may be asked for several times.
            missing = list(dict.fromkeys(self._missing))
            raise CheckpointError(
                f"the {self._what} checkpoint has {len(self._dense)} tensors but lacks {len(missing)} that are "
                f"needed: {listed(missing)}; it is incomplete or not a {self._what.removeprefix('dense ')}"
            )
        if self._misfits:
            misfits = list(dict.fromkeys(self._misfits))
            shown = "; ".join(misfits[:4]) + (f"; and {len(misfits) - 4} more" if len(misfits) > 4 else "")
            raise CheckpointError(
                f"the {self._what} checkpoint has {shown}; drop the override, or choose another checkpoint"
            )
        if self._unread:
            raise CheckpointError(
                f"the {self._what} checkpoint has {len(self._dense)} tensors, but the configuration has no place for "
                f"{len(self._unread)} of them: {listed(self._unread)}; drop the override, or correct its config.json"
            )


class _Absent:
    """Stands in for a missing slice until all that is missing can be reported at once."""

    def get_shape(self) -> list[int]:
        return [0]

    def get_dtype(self) -> str:
        return "F32"
