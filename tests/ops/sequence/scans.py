"""Inputs of selective scans for their tests, and what a scan gives for them."""

from collections.abc import Callable
from typing import Any

import torch

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

BATCH, CHANNELS, STATE = 3, 5, 4


def make_inputs(
    length: int, batch: int = BATCH, channels: int = CHANNELS, state: int = STATE, dtype: torch.dtype = torch.float32
) -> Inputs:
    """u, delta, a, b and c, of which decays are between strong and none."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    delta = torch.nn.functional.softplus(normal(batch, length, channels) * 2 - 2)
    rates = -torch.exp(normal(channels, state))
    inputs = normal(batch, length, channels), delta, rates, normal(batch, length, state), normal(batch, length, state)
    for x in inputs:
        x.requires_grad_()
    return inputs


def make_options(length: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """An initial state, padding anywhere, and documents that begin anywhere."""
    generator = torch.Generator().manual_seed(length + 1)
    state = torch.randn(BATCH, CHANNELS, STATE, generator=generator, dtype=dtype).requires_grad_()
    mask = (torch.rand(BATCH, length, generator=generator) > 0.3).long()
    starts = torch.rand(BATCH, length, generator=generator) > 0.9
    return {"initial_state": state, "mask_BS": mask, "starts_BS": starts}


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


def values_and_gradients(
    scan: Callable[..., Any], inputs: Inputs, options: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    y_BSD, state_BDN = scan(*inputs, **options)
    if "mask_BS" in options:
        y_BSD = y_BSD * options["mask_BS"][..., None]
    generator = torch.Generator().manual_seed(7)
    dy, dstate = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (y_BSD, state_BDN))
    leaves = [x for x in (*inputs, *options.values()) if x.requires_grad]
    gradients = torch.autograd.grad([y_BSD, state_BDN], leaves, [dy, dstate])
    return [y_BSD.detach(), state_BDN.detach(), *gradients]
