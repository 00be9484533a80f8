"""Tensors that are computed from a checkpoint's slices only when someone reads them.

They answer to what transformers' loader asks of a safetensors slice: `get_shape`, `get_dtype` and indexing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from moe_hf.base.errors import CheckpointError

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_named(name: str) -> torch.dtype:
    """The type that safetensors calls `name`.

    Raises:
        CheckpointError: it is a type that no dense model has.

    >>> dtype_named("BF16")
    torch.bfloat16
    """
    if name not in _DTYPES:
        raise CheckpointError(
            f"tensors of type {name!r} can't be read; allowed are {', '.join(_DTYPES)}; save the model in one of these"
        )
    return _DTYPES[name]


def name_of_dtype(dtype: torch.dtype) -> str:
    """What safetensors calls a type.

    Raises:
        CheckpointError: it has no name for it.
    """
    if dtype not in _NAMES:
        allowed = ", ".join(map(str, _NAMES))
        raise CheckpointError(f"a tensor of {dtype} can't be stored; allowed are {allowed}; cast it to one of these")
    return _NAMES[dtype]


class LazyTensor(ABC):
    """A tensor with a known shape and type whose values do not exist yet."""

    def __init__(self, shape: tuple[int, ...], dtype_name: str) -> None:
        self.shape = shape
        self._dtype_name = dtype_name
        # Whether a file of half precision holds it in single precision.
        self.in_float32 = False

    def get_shape(self) -> list[int]:
        """The shape, as safetensors' slices give it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The type by safetensors' name, such as "F32"."""
        return self._dtype_name

    def written_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """The type in a file whose weights are of `weight_dtype`."""
        return torch.promote_types(weight_dtype, torch.float32) if self.in_float32 else weight_dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.read() if index is Ellipsis else self.read()[index].contiguous()

    def mixed(self, others: Sequence["LazyTensor"]) -> "LazyTensor":
        """The tensor of a model made of this one and others: their mean, unless the kind of tensor knows better.

        Args:
            others: the same tensor of each other model.
        """
        return Averaged([self, *others])

    @abstractmethod
    def read(self) -> torch.Tensor:
        """The values, contiguous."""


class Sliced(LazyTensor):
    """Some columns of a stored tensor, transposed where the source is a Conv1D weight, which is stored (in, out)."""

    def __init__(self, source: Any, transpose: bool = False, columns: slice | None = None) -> None:
        shape = list(source.get_shape())
        if columns is not None:
            shape[-1] = columns.stop - columns.start
        super().__init__(tuple(reversed(shape)) if transpose else tuple(shape), source.get_dtype())
        self._source = source
        self._transpose = transpose
        self._columns = columns

    def read(self) -> torch.Tensor:
        """The values, contiguous; two reads may give the same memory, that of the opened file."""
        if self._columns is None:
            value = self._source[...] if len(self.shape) != 1 else self._source[:]
        elif len(self.shape) == 1:
            value = self._source[self._columns]
        else:
            value = self._source[:, self._columns]
        return (value.T if self._transpose else value).contiguous()


class StackEntry(LazyTensor):
    """An entry of a stored stack, or some of its rows; nothing else of the stack is read."""

    def __init__(self, source: Any, entry: int, rows: slice = slice(None)) -> None:
        _, length, *rest = source.get_shape()
        super().__init__((len(range(length)[rows]), *rest), source.get_dtype())
        self._source, self._entry, self._rows = source, entry, rows

    def read(self) -> torch.Tensor:
        """The values, contiguous."""
        return self._source[self._entry, self._rows].contiguous()


class Copied(LazyTensor):
    """Another lazy tensor's values in memory of their own, for a second parameter that starts from the same tensor."""

    def __init__(self, original: LazyTensor) -> None:
        super().__init__(original.shape, original.get_dtype())
        self._original = original

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        return self._original.read().clone()


class Averaged(LazyTensor):
    """The mean of several lazy tensors of one shape, taken in single precision at least."""

    def __init__(self, parts: Sequence[LazyTensor]) -> None:
        super().__init__(parts[0].shape, parts[0].get_dtype())
        self._parts = parts

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        first = self._parts[0].read()
        total = first.to(torch.promote_types(first.dtype, torch.float32), copy=True)
        for part in self._parts[1:]:
            total += part.read()
        return (total / len(self._parts)).to(first.dtype)


class Computed(LazyTensor):
    """What a function makes of another lazy tensor, such as the same numbers in another shape."""

    def __init__(
        self, original: LazyTensor, shape: tuple[int, ...], function: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(shape, original.get_dtype())
        self._original = original
        self._function = function

    def mixed(self, others: Sequence[LazyTensor]) -> LazyTensor:
        """The function of the mixed original."""
        originals = [other._original for other in others if isinstance(other, Computed)]
        return Computed(self._original.mixed(originals), self.shape, self._function)

    def read(self) -> torch.Tensor:
        """The values, contiguous."""
        return self._function(self._original.read()).contiguous()


class Joined(LazyTensor):
    """Several lazy tensors of one type, one behind the other along a dimension."""

    def __init__(self, parts: Sequence[LazyTensor], dim: int) -> None:
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        super().__init__(tuple(shape), parts[0].get_dtype())
        self._parts = parts
        self._dim = dim

    def mixed(self, others: Sequence[LazyTensor]) -> LazyTensor:
        """The mixed parts, joined."""
        rows = zip(*(other._parts for other in others if isinstance(other, Joined)), strict=True)
        return Joined([part.mixed(row) for part, row in zip(self._parts, rows, strict=True)], self._dim)

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        return torch.cat([part.read() for part in self._parts], dim=self._dim)


class Drawn(LazyTensor):
    """Normal draws from a seed of their own, so that every process and every order of reading gives the same values."""

    def __init__(self, shape: tuple[int, ...], std: float, seed: int) -> None:
        super().__init__(shape, "F32")
        self._std = std
        self._seed = seed

    def mixed(self, others: Sequence[LazyTensor]) -> LazyTensor:
        """Itself: nothing of a draw comes from a model."""
        return self

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        if self._std == 0:
            return torch.zeros(self.shape, dtype=torch.float32)
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float32) * self._std


def zeros(shape: tuple[int, ...]) -> Drawn:
    """A tensor of zeros: draws of no spread."""
    return Drawn(shape, std=0.0, seed=0)


class Loaded(LazyTensor):
    """A weight that is in memory already.

    Raises:
        CheckpointError: safetensors has no name for its type.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tuple(tensor.shape), name_of_dtype(tensor.dtype))
        self._tensor = tensor

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        return self._tensor.clone()


class Held(Loaded):
    """A small tensor in memory that is no weight, so that it keeps its type, such as a table of ids."""

    def written_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """Its own type, whatever that of the weights: half precision would merge ids and lose small steps."""
        return self._tensor.dtype

    def mixed(self, others: Sequence[LazyTensor]) -> LazyTensor:
        """Itself: a mean of ids means nothing."""
        return self
