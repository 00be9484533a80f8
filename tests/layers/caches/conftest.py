"""A small Hyena of order 2 and 3, and its prompts."""

import pytest
import torch

from moe_hf import HyenaWithMoE
from tests.layers.caches.tiny_hyena import make


@pytest.fixture(scope="module", params=[2, 3])
def model(request: pytest.FixtureRequest) -> HyenaWithMoE:
    return make(hyena_order=request.param)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 41, (3, 90), generator=torch.Generator().manual_seed(1))
