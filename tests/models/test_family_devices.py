"""A model that is spread over two devices: numbers of both never meet in one operation unmoved."""

from typing import Any

import pytest
import torch

from moe_hf.config.validation import ROUTER_BALANCE_LOSSES, ROUTER_TYPES
from tests.models.families import KINDS, tiny_family
from tests.models.two_devices import HERE, THERE, TwoDevices


def spread(devices: TwoDevices, model: Any) -> None:
    """Every other layer on the second device, and the head."""
    devices.put(HERE, *model.parameters(), *model.buffers())
    decoders = [m for m in model.modules() if hasattr(m, "embed_tokens") and hasattr(m, "layers")]
    for decoder in decoders:
        for i, layer in enumerate(decoder.layers):
            devices.move(layer, THERE if i % 2 else HERE)
        devices.move(decoder.norm, HERE)
    devices.move(model.get_output_embeddings(), THERE)


ROUTING = [{"router_balance_loss": word} for word in ROUTER_BALANCE_LOSSES] + [
    {"router_type": word, "num_experts_per_tok": 1, "router_capacity_factor": 1.5} for word in ROUTER_TYPES
]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [*((kind, {}) for kind in KINDS), *(("gpt2", {**fields, "mlp_layer_types": ["sparse"] * 4}) for fields in ROUTING)],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, list(value.values())[:1])),
)
def test_losses_and_gradients_are_those_of_one_device(kind: str, fields: dict[str, Any]) -> None:
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    losses, gradients = [], []
    for several in (False, True):
        model = tiny_family(kind, router_aux_loss_coef=0.5, router_z_loss_coef=0.1, **fields).train()
        with TwoDevices() as devices:
            if several:
                spread(devices, model)
            number = torch.tensor(40)
            devices.put(HERE, ids, number)
            output = model(input_ids=ids, labels=ids, num_items_in_batch=number)
            output.loss.backward()
        losses.append(output.loss.item())
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_that_of_one_device(kind: str) -> None:
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    model = tiny_family(kind)
    alone = model.generate(ids, max_new_tokens=5, do_sample=False)
    with TwoDevices() as devices:
        spread(devices, model)
        devices.put(HERE, ids)
        assert model.generate(ids, max_new_tokens=5, do_sample=False).tolist() == alone.tolist()


def test_two_devices_refuse_to_meet_unmoved() -> None:
    with TwoDevices() as devices:
        here, there = torch.ones(3), torch.ones(3, device=THERE)
        assert (here.device, there.device, (there * 2).device) == (HERE, THERE, THERE)
        with pytest.raises(RuntimeError, match="got tensors on"):
            here + there
        assert (here + there.to(here.device)).device == HERE
        assert devices.place(here.to(there)) == THERE
