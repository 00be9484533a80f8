"""Small queries, keys and values for the tests of attention, and how far results are apart."""

import torch

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(
    batch: int, heads: int, groups: int, queries: int, keys: int, dtype: torch.dtype = DOUBLE
) -> list[torch.Tensor]:
    shapes = (batch, heads, queries, 5), (batch, groups, keys, 5), (batch, groups, keys, 6)
    return [normal(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes)]


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).detach().norm() / wanted.detach().norm().clamp(min=1e-9))
