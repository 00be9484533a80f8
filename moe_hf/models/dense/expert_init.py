"""Makes the experts of a sparse layer from one dense FFN: copies, noisy copies, or partly re-initialised copies.

Shapes: E experts, D width, F width of the FFN.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from moe_hf.base.registry import Registry
from moe_hf.models.dense.lazy_tensors import LazyTensor, Sliced


class ExpertRecipe(NamedTuple):
    """How experts are made to differ, and of which type they are made; None is the dense weight's own."""

    kind: str
    noise: float
    drop_ratio: float
    seed: int
    dtype: torch.dtype | None = None


class ExpertPart(NamedTuple):
    """One dense parameter that every expert gets a version of."""

    layer: int
    name: str
    # The dimension that counts the FFN's units; None for the output bias, which belongs to no unit.
    unit_dim: int | None


def seed_of(*words: Any) -> int:
    """A seed that depends on nothing but the words, the same in every process.

    >>> seed_of(0, "gate", 1) == seed_of(0, "gate", 1) != seed_of(0, "gate", 2)
    True
    """
    return zlib.crc32("/".join(str(word) for word in words).encode())


def _copy(dense: torch.Tensor, part: ExpertPart, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
    return dense


def _noise(dense: torch.Tensor, part: ExpertPart, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
    # On the CPU, with a seed of its own: the draw depends neither on the device nor on the order of reading.
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, part.layer, part.name, expert))
    noise = torch.randn(dense.shape, generator=generator)
    spread = dense.float().std(correction=0)
    return (dense.float() + recipe.noise * spread * noise).to(dense.dtype)


def _drop(dense: torch.Tensor, part: ExpertPart, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
    """Nakamura et al. 2025, Drop-Upcycling, section 3: the chosen units are redrawn with their own mean and spread."""
    if part.unit_dim is None:
        return dense
    units = dense.shape[part.unit_dim]
    # The same units in every part of one expert: the seed does not name the part.
    chooser = torch.Generator().manual_seed(seed_of(recipe.seed, part.layer, "units", expert))
    chosen = torch.randperm(units, generator=chooser)[: round(recipe.drop_ratio * units)]
    if len(chosen) == 0:
        return dense
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, part.layer, part.name, expert))
    old = dense.index_select(part.unit_dim, chosen).float()
    new = old.mean() + old.std(correction=0) * torch.randn(old.shape, generator=generator)
    return dense.index_copy(part.unit_dim, chosen, new.to(dense.dtype))


ExpertMaker = Callable[[torch.Tensor, ExpertPart, int, ExpertRecipe], torch.Tensor]
EXPERT_MAKERS: Registry[ExpertMaker] = Registry("expert_init", {"copy": _copy, "noise": _noise, "drop": _drop})


class StackedExperts(LazyTensor):
    """An (E, ...) stack of versions of one dense parameter; reading some experts makes only those."""

    def __init__(self, dense: Sliced, num_experts: int, part: ExpertPart, recipe: ExpertRecipe) -> None:
        super().__init__((num_experts, *dense.shape), dense.get_dtype())
        self._dense = dense
        self._part = part
        self._recipe = recipe

    def __getitem__(self, index: Any) -> torch.Tensor:
        if index is Ellipsis:
            return self.read()
        first, *rest = index if isinstance(index, tuple) else (index,)
        experts = range(self.shape[0])[first] if isinstance(first, slice) else None
        if experts is None:
            return self.read()[index].contiguous()
        return self._stack(experts)[(slice(None), *rest)].contiguous()

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        return self._stack(range(self.shape[0]))

    def _stack(self, experts: range) -> torch.Tensor:
        dense = self._dense.read()
        make = EXPERT_MAKERS[self._recipe.kind]
        # In the final type from the start: a float32 stack would be twice the size of the model's own.
        out = torch.empty((len(experts), *dense.shape), dtype=self._recipe.dtype or dense.dtype)
        for row, expert in enumerate(experts):
            out[row] = make(dense, self._part, expert, self._recipe)
        return out
