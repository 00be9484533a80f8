"""What wraps a module must take effect, whatever the family: hooks, offloading, sharding's rebuilding of inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import nn
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.families import KINDS, tiny_family

B, S = 2, 13


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> PreTrainedModel:
    return tiny_family(kind, num_hidden_layers=2)


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


def test_what_a_hook_makes_of_any_child_reaches_the_logits(model, ids) -> None:
    def louder(_: nn.Module, args: Any, out: Any) -> Any:
        return tree_map(lambda x: x * 1.5 + 0.1 if torch.is_tensor(x) and x.is_floating_point() else x, out)

    expected = logits_of(model, ids)
    children = {name: child for name, child in model.named_modules() if list(child.parameters(recurse=False))}
    assert len(children) > 10
    for name, child in children.items():
        handle = child.register_forward_hook(louder)
        changed = logits_of(model, ids)
        handle.remove()
        assert not changed.equal(expected), name


def test_offloaded_to_the_cpu_it_computes_the_same(model, ids) -> None:
    expected = logits_of(model, ids)
    assert logits_of(cpu_offload(model, execution_device=torch.device("cpu")), ids).equal(expected)


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
def test_with_its_layers_on_disk_it_computes_and_generates_the_same(model, ids, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    # accelerate cannot fetch a parameter that stands beside the modules of its map.
    places = {f"model.{name}": "cpu" for name, _ in model.model.named_parameters(recurse=False)} | {"lm_head": "cpu"}
    # transformers 5.17 warns in generate where the first weight is not at hand.
    places |= {f"model.{n}": "cpu" if n == "embed_tokens" else "disk" for n, _ in model.model.named_children()}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    assert any(parameter.is_meta for parameter in loaded.parameters())
    assert logits_of(loaded, ids).equal(logits_of(model, ids))
    greedy = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert loaded.generate(ids, **greedy).equal(model.generate(ids, **greedy))


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_of_its_linear_layers_stays_near(model, ids) -> None:
    expected = logits_of(model, ids)
    logits = logits_of(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8), ids)
    error = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 0 < error.median() < 0.3


# peft asks by a name that newer transformers call outdated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_any_linear_layer_does_what_it_does_merged(kind: str, ids) -> None:
    peft = pytest.importorskip("peft")
    plain = tiny_family(kind, num_hidden_layers=2)
    targets = {name.rpartition(".")[2] for name, child in plain.named_modules() if isinstance(child, nn.Linear)}
    expected = logits_of(plain, ids)
    for target in sorted(targets - {"0", "1", "2"}):
        adapted = peft.get_peft_model(
            tiny_family(kind, num_hidden_layers=2), peft.LoraConfig(target_modules=[target], init_lora_weights=False)
        )
        logits = logits_of(adapted, ids)
        effect = (logits - expected).norm()
        assert effect > 1e-3 * expected.norm(), target
        assert (logits - logits_of(adapted.merge_and_unload(), ids)).norm() < 0.02 * effect, target
