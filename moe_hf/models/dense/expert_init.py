"""Makes the experts of a sparse layer from one dense FFN: copies, noisy copies, or partly re-initialised copies.

Shapes: E experts, D width, F width of the FFN.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.lazy_tensors import Computed, Drawn, LazyTensor


class ExpertRecipe(NamedTuple):
    """How experts are made of one FFN.

    Attributes:
        kind: a key of `EXPERT_MAKERS`.
        noise: of kind "noise".
        drop_ratio: of kind "drop".
        seed: of both.
        dtype: of the experts; None is the dense weight's own.
        granularity: slices G that each version of the FFN is cut into, an expert each (He et al. 2024, Upcycling Large
            Language Models into Mixture of Experts, section 3.3). A token visits whole versions while the router's rows
            of one version are alike; each slice then has a G-th of its weight, which the output makes up for.
    """

    kind: str
    noise: float
    drop_ratio: float
    seed: int
    dtype: torch.dtype | None = None
    granularity: int = 1


def expert_recipe(config: MoEDecoderConfig, dtype: torch.dtype | None, granularity: int = 1) -> ExpertRecipe:
    """The recipe that a configuration asks for."""
    kind, noise, drop = config.expert_init, config.expert_init_noise, config.expert_init_drop_ratio
    return ExpertRecipe(kind, noise, drop, config.expert_init_seed, dtype, granularity)


def require_granularity(granularity: int, width: int, num_experts: int, num_experts_per_tok: int) -> None:
    """Check that FFNs can be cut into so many slices, and that a token can visit whole versions of them.

    Raises:
        ConfigError: they can't, or it can't.
    """
    divided = {"the FFNs' width": width, "num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok}
    for name, value in divided.items():
        if not isinstance(granularity, int) or granularity < 1 or value % granularity:
            raise ConfigError(
                f"granularity={granularity!r} is not allowed; it must be an integer >= 1 that divides {name}={value}"
            )


class FFNParameter(NamedTuple):
    """One dense parameter that every expert gets a version of.

    Attributes:
        layer: index of the layer.
        name: of the parameter within an FFN.
        unit_dim: the dimension that counts the FFN's units; None for the output bias, which belongs to no unit.
        scale: factor of the values.
    """

    layer: int
    name: str
    unit_dim: int | None
    scale: float = 1.0


def seed_of(*words: Any) -> int:
    """A seed that depends on nothing but the words, the same in every process.

    >>> seed_of(0, "gate", 1) == seed_of(0, "gate", 1) != seed_of(0, "gate", 2)
    True
    """
    return zlib.crc32("/".join(str(word) for word in words).encode())


def _copy(dense: torch.Tensor, part: FFNParameter, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
    return dense


def _noise(dense: torch.Tensor, part: FFNParameter, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
    # On the CPU, with a seed of its own: the draw depends neither on the device nor on the order of reading.
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, part.layer, part.name, expert))
    noise = torch.randn(dense.shape, generator=generator)
    spread = dense.float().std(correction=0)
    return (dense.float() + recipe.noise * spread * noise).to(dense.dtype)


def _drop(dense: torch.Tensor, part: FFNParameter, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
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


ExpertMaker = Callable[[torch.Tensor, FFNParameter, int, ExpertRecipe], torch.Tensor]
EXPERT_MAKERS: Registry[ExpertMaker] = Registry("expert_init", {"copy": _copy, "noise": _noise, "drop": _drop})


def expert_shape(dense: LazyTensor, part: FFNParameter, recipe: ExpertRecipe) -> tuple[int, ...]:
    """The shape of one expert's version of a dense parameter."""
    shape = list(dense.shape)
    # What stands in for a missing tensor has one dimension only.
    if part.unit_dim is not None and part.unit_dim < len(shape):
        shape[part.unit_dim] //= recipe.granularity
    return tuple(shape)


def make_expert(dense: torch.Tensor, part: FFNParameter, expert: int, recipe: ExpertRecipe) -> torch.Tensor:
    """One expert's version of a dense parameter; it may share the memory of `dense`."""
    version, piece = divmod(expert, recipe.granularity)
    made = EXPERT_MAKERS[recipe.kind](dense, part, version, recipe)
    if part.unit_dim is not None and recipe.granularity > 1:
        size = dense.shape[part.unit_dim] // recipe.granularity
        made = made.narrow(part.unit_dim, piece * size, size)
    return made if part.scale == 1 else made * part.scale


def router_rows(num_experts: int, width: int, std: float, seed: int, granularity: int = 1) -> LazyTensor:
    """A router's fresh weight (E, D), in which the slices of one version of the FFN have equal rows."""
    rows = Drawn((num_experts // granularity, width), std, seed)
    if granularity == 1:
        return rows
    return Computed(rows, (num_experts, width), lambda weight: weight.repeat_interleave(granularity, dim=0))


class OneExpert(LazyTensor):
    """One expert's version of a dense parameter, for files that hold every expert by itself."""

    def __init__(self, dense: LazyTensor, part: FFNParameter, expert: int, recipe: ExpertRecipe) -> None:
        super().__init__(expert_shape(dense, part, recipe), dense.get_dtype())
        self._dense, self._part, self._expert, self._recipe = dense, part, expert, recipe

    def mixed(self, others: Sequence[LazyTensor]) -> LazyTensor:
        """Of the models in turn, each gives one expert."""
        return [self, *others][self._expert // self._recipe.granularity % (1 + len(others))]

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        return make_expert(self._dense.read(), self._part, self._expert, self._recipe).clone()


class StackedExperts(LazyTensor):
    """An (E, ...) stack of versions of one dense parameter; reading some experts makes only those.

    It says the dense parameter's dtype; what is read has the recipe's, where that names one.
    """

    def __init__(self, dense: LazyTensor, num_experts: int, part: FFNParameter, recipe: ExpertRecipe) -> None:
        super().__init__((num_experts, *expert_shape(dense, part, recipe)), dense.get_dtype())
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

    def mixed(self, others: Sequence[LazyTensor]) -> LazyTensor:
        """Of the models in turn, each gives one expert."""
        return _Picked([self, *others], self._recipe.granularity)

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        return self._stack(range(self.shape[0]))

    def _stack(self, experts: range) -> torch.Tensor:
        dense = self._dense.read()
        # In the final type from the start: a float32 stack would be twice the size of the model's own.
        out = torch.empty((len(experts), *self.shape[1:]), dtype=self._recipe.dtype or dense.dtype)
        for row, expert in enumerate(experts):
            out[row] = make_expert(dense, self._part, expert, self._recipe)
        return out


class _Picked(LazyTensor):
    """An (E, ...) stack whose experts come from several stacks in turn, slices of one version together."""

    def __init__(self, stacks: Sequence[LazyTensor], granularity: int) -> None:
        super().__init__(stacks[0].shape, stacks[0].get_dtype())
        self._stacks, self._granularity = stacks, granularity

    def read(self) -> torch.Tensor:
        """The values, in memory of their own."""
        count = len(self._stacks)
        rows = [self._stacks[i // self._granularity % count][i : i + 1] for i in range(self.shape[0])]
        return torch.cat(rows)
