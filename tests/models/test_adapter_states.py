"""An adapter brings along what training moved of the routers beside their weights, whatever peft was told to adapt."""

from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import PreTrainedModel

from moe_hf.base.optional import is_available
from moe_hf.models.native_routers import NativeRouters
from moe_hf.models.router_states import RouterStates, routers_of
from moe_hf.training.balance import RouterStateCallback
from moe_hf.training.metrics import read_metrics
from tests.models.families import KINDS, tiny_family
from tests.models.native_moes import native_moe
from tests.training.tiny import make_trainer, rows

pytestmark = [
    # peft asks by a name that newer transformers call outdated, and copies tensors that carry a gradient.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.skipif(not is_available("peft"), reason="peft is not installed"),
]
WAYS: dict[str, dict[str, Any]] = {
    "attention alone": {"target_modules": ["q_proj"]},
    "the router too": {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]},
    "the router whole": {"target_modules": ["q_proj"], "modules_to_save": ["gate"]},
}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (4, 12), generator=torch.Generator().manual_seed(0))


def made(kind: str, router: str) -> PreTrainedModel:
    speed = {"router_bias_update_speed": 0.1} if router == "sigmoid_bias" else {}
    return tiny_family(kind, router_type=router, **speed)


def trained(kind: str, router: str, way: dict[str, Any], ids: torch.Tensor) -> Any:
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(made(kind, router), peft.LoraConfig(r=2, **way)).train()
    states = RouterStates(model.get_base_model())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(4):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        states.step()
        optimizer.step()
        optimizer.zero_grad()
    states.close()
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("router", ["sigmoid_bias", "expert_choice", "expert_threshold"])
@pytest.mark.parametrize("way", list(WAYS))
def test_states_are_saved_loaded_saved_again_and_merged(ids, tmp_path, router: str, way: str) -> None:
    import peft

    model = trained("gpt2", router, WAYS[way], ids)
    expected = logits(model, ids)
    moved = torch.stack([gate.state_E for gate in routers_of(model)])
    assert not moved.equal(torch.stack([gate.state_E for gate in routers_of(made("gpt2", router))]))
    model.save_pretrained(tmp_path / "first")
    loaded = peft.PeftModel.from_pretrained(made("gpt2", router), tmp_path / "first")
    assert logits(loaded, ids).equal(expected)
    loaded.save_pretrained(tmp_path / "second")
    renamed = peft.PeftModel.from_pretrained(made("gpt2", router), tmp_path / "second", adapter_name="renamed")
    assert logits(renamed, ids).equal(expected)
    merged = renamed.merge_and_unload()
    torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == made("gpt2", router).state_dict().keys()


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_adapted_router_trains_in_every_family(kind: str, ids, tmp_path) -> None:
    import peft

    model = trained(kind, "sigmoid_bias", {"target_parameters": ["gate.weight"]}, ids)
    expected = logits(model, ids)
    assert (expected - logits(made(kind, "sigmoid_bias"), ids)).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    assert logits(peft.PeftModel.from_pretrained(made(kind, "sigmoid_bias"), tmp_path), ids).equal(expected)


def test_states_belong_to_an_adapter_that_transformers_attached(ids, tmp_path) -> None:
    import peft
    from transformers.integrations.peft import MIN_PEFT_VERSION

    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"this transformers attaches adapters of peft {MIN_PEFT_VERSION} or newer")
    model = made("gpt2", "sigmoid_bias")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for gate in routers_of(model):
            gate.state_E[0] += 3
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    other = made("gpt2", "sigmoid_bias")
    other.load_adapter(tmp_path)
    assert logits(other, ids).equal(expected)


NATIVE_WAYS: dict[str, dict[str, Any]] = {
    "attention alone": {"target_modules": ["o_proj"]},
    "experts": {"target_modules": ["o_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "the router too": {"target_modules": ["o_proj"], "target_parameters": ["gate.weight"]},
    "the router whole": {"target_modules": ["o_proj"], "modules_to_save": ["gate"]},
}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("way", list(NATIVE_WAYS))
def test_transformers_own_classes_train_with_an_adapter_that_brings_all_along(tmp_path, kind: str, way: str) -> None:
    import peft

    model = peft.get_peft_model(native_moe(kind), peft.LoraConfig(r=2, **NATIVE_WAYS[way]))
    data = rows(16)
    callback = RouterStateCallback(bias_update_speed=0.5)
    make_trainer(tmp_path / "run", model, data, [callback], max_steps=3, per_device_train_batch_size=8).train()
    lines = [line for line in read_metrics(str(tmp_path / "run")) if "loss" in line]
    assert all("aux_loss" in line for line in lines)
    ids = torch.stack([row["input_ids"] for row in data])
    expected = logits(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(native_moe(kind), tmp_path / "adapter")
    biases = [state.value for state in NativeRouters(model).biases if state is not None]
    loaded = [state.value for state in NativeRouters(again).biases if state is not None]
    assert len(biases) == (kind == "deepseek_v3")
    for bias, other in zip(biases, loaded, strict=True):
        assert bias.abs().sum() > 0
        assert bias.equal(other)
    torch.testing.assert_close(logits(again, ids), expected)
