"""Prompts for MegaByte, and a mask that pads them on the left."""

import pytest
import torch

from tests.models.megabyte.tiny import PADS, B, S


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (B, S), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    return (torch.arange(S) >= torch.tensor(PADS)[:, None]).long()
