"""Models whose results were recorded, in pickles and copies."""

import copy
import io
from typing import Any

import pytest
import torch

from tests.models.families import KINDS, tiny_family

RECORDED = {"output_router_logits": True, "output_hidden_states": True}


def pickled(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("again", [pickled, copy.deepcopy])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_has_trained_can_be_pickled_and_copied(kind: str, again: Any, ids: torch.Tensor) -> None:
    model = tiny_family(kind, num_hidden_layers=2, router_capacity_factor=1.0).train()
    model(ids, labels=ids, output_router_logits=True).loss.backward()
    model.eval()
    wanted = model(ids, **RECORDED)
    other = again(model)
    out = other(ids, **RECORDED)
    assert out.logits.equal(wanted.logits)
    for name in ("router_logits", "hidden_states"):
        assert len(out[name]) == len(wanted[name]) > 0
        assert all(a.equal(b) for a, b in zip(out[name], wanted[name], strict=True))
    # The first one records as before.
    assert len(model(ids, **RECORDED).router_logits) == len(wanted.router_logits)


def test_a_copied_layer_records_in_its_new_place(ids: torch.Tensor) -> None:
    model = tiny_family("gpt2", num_hidden_layers=2)
    model(ids, **RECORDED)
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    model.model.layers[2].mixer.layer_idx = 2
    assert len(model.model(ids, use_cache=False, **RECORDED).hidden_states) == 4


def test_hooks_of_others_are_pickled(ids: torch.Tensor) -> None:
    model = tiny_family("gpt2", num_hidden_layers=2)
    model(ids, **RECORDED)
    model.model.layers[0].register_forward_hook(doubled)
    wanted = model(ids).logits
    assert pickled(model)(ids).logits.equal(wanted)


def doubled(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


@pytest.mark.parametrize("kind", ["gpt2", "megabyte", "mamba2", "hyena", "rwkv7"])
@pytest.mark.parametrize("again", [pickled, copy.deepcopy])
def test_a_cache_goes_on_from_a_pickle_and_a_copy(kind: str, again: Any, ids: torch.Tensor) -> None:
    model = tiny_family(kind, num_hidden_layers=2)
    with torch.no_grad():
        cache = model.model.new_cache()
        model(ids, past_key_values=cache)
        other = again(cache)
        wanted = model(ids[:, :1], past_key_values=cache).logits
        torch.testing.assert_close(model(ids[:, :1], past_key_values=other).logits, wanted)
