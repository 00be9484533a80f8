"""What wraps a module must take effect, whatever the family: hooks, offloading, sharding's rebuilding of inputs."""

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from tests.models.families import KINDS, tiny_family

B, S = 2, 13


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> PreTrainedModel:
    return tiny_family(kind)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (B, S), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, use_cache=False).logits


def test_dispatched_with_hooks_it_computes_the_same(model, ids) -> None:
    expected = logits_of(model, ids)
    assert logits_of(dispatch_model(model, {"": "cpu"}, force_hooks=True), ids).equal(expected)


def test_layers_whose_inputs_are_rebuilt_compute_the_same(model, ids) -> None:
    # As FSDP2 does for `cast_forward_inputs`, and any hook that moves inputs.
    def rebuild(_: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return tree_map(lambda leaf: leaf, (args, kwargs))

    expected = logits_of(model, ids)
    for module in model.modules():
        module.register_forward_pre_hook(rebuild, with_kwargs=True)
    assert logits_of(model, ids).equal(expected)


def test_recorded_hidden_states_are_the_residual_stream_alone(model, ids) -> None:
    with torch.no_grad():
        states = model(ids, use_cache=False, output_hidden_states=True).hidden_states
    assert {type(state) for state in states} == {torch.Tensor}
