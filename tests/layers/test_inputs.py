"""What layers are told of a call: its pieces, and what they share."""

import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils._pytree import tree_map
from transformers import DynamicCache

from moe_hf.layers.attention.positions import Rotation
from moe_hf.layers.inputs import PLAIN, LayerInputs

B, S, D = 2, 7, 3


def full_inputs() -> LayerInputs:
    """Every field given, with numbers that say where they stand."""
    place_BS = torch.arange(B * S).view(B, S)
    return LayerInputs(
        token_ids=place_BS,
        attention_mask=torch.zeros(B, 1, S, S),
        padding_mask=place_BS + 100,
        document_starts=place_BS > 9,
        position_ids=torch.arange(S)[None],
        rotation=Rotation(torch.rand(1, S, 4), torch.rand(1, S, 4)),
        cache=DynamicCache(),
        shared_values={"mine": torch.ones(2)},
        first_value=torch.rand(B, S, D),
        attention_options={"softcap": 3.0},
    )


@pytest.mark.parametrize("length", [1, 3, 7, 50, None])
def test_stretches_follow_each_other_and_make_the_whole(length: int | None) -> None:
    inputs, x_BSD = full_inputs(), torch.rand(B, S, D)
    parts = list(inputs.stretches(x_BSD, length))
    assert [len(x[0]) for x, _ in parts] == {1: [1] * 7, 3: [3, 3, 1]}.get(length or S, [7])
    assert torch.cat([x for x, _ in parts], dim=1).equal(x_BSD)
    for name in ("token_ids", "padding_mask", "document_starts", "position_ids", "first_value"):
        assert torch.cat([getattr(part, name) for _, part in parts], dim=1).equal(getattr(inputs, name)), name
    for i in (0, 1):
        assert torch.cat([part.rotation[i] for _, part in parts], dim=1).equal(inputs.rotation[i])
    assert all(part.cache is inputs.cache and part.shared_values is inputs.shared_values for _, part in parts)


def test_absent_fields_stay_absent_in_stretches() -> None:
    x_BSD = torch.rand(B, S, D)
    assert [part for _, part in PLAIN.stretches(x_BSD, 4)] == [PLAIN, PLAIN]


def test_the_first_layer_that_asks_computes_for_all() -> None:
    computed = []

    def compute() -> torch.Tensor:
        computed.append(len(computed))
        return torch.tensor(computed[-1])

    inputs = LayerInputs(shared_values={})
    assert [int(inputs.shared("a", compute)) for _ in range(3)] == [0, 0, 0]
    assert int(inputs.shared("b", compute)) == 1
    # Without a place to share them in, each computes its own.
    assert [int(PLAIN.shared("a", compute)) for _ in range(2)] == [2, 3]


def test_a_step_reads_the_mask_of_its_one_position() -> None:
    assert LayerInputs(padding_mask=torch.tensor([[1], [0]])).mask_of_step.tolist() == [1, 0]
    assert PLAIN.mask_of_step is None
    assert PLAIN.layout == {"mask_BS": None, "starts_BS": None}


def test_what_moves_the_inputs_of_a_layer_moves_every_tensor_and_hands_on_the_cache() -> None:
    inputs = full_inputs()
    moved = send_to_device(inputs, torch.device("meta"), skip_keys=["past_key_values"])
    assert isinstance(moved, LayerInputs)
    assert moved.cache is inputs.cache
    tensors = [*moved.rotation, *moved.shared_values.values(), *(x for x in moved if isinstance(x, torch.Tensor))]
    assert len(tensors) == 9
    assert all(x.is_meta for x in tensors)
    assert moved.attention_options == inputs.attention_options
    rebuilt = tree_map(lambda leaf: leaf, inputs._replace(cache=None))
    assert isinstance(rebuilt, LayerInputs)
    assert rebuilt.rotation.cos_BSC is inputs.rotation.cos_BSC
