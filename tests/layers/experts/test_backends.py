"""All experts backends give one value and one gradient, for this package's experts and for other models'."""

import os

import pytest
import torch
from torch import nn
from transformers.integrations.moe import ExpertsInterface

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.base.optional import is_available
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS, grouped_mm_runs, register_experts_backends
from moe_hf.layers.experts.stack_of import stack_of
from tests.layers.experts.any_experts import (
    MODELS,
    E,
    assert_equal_within,
    make,
    routes,
    tokens_for,
    value_and_gradients,
)
from tests.models.families import tiny_family

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# Triton reads the variable when it is imported, so that it has to stand before the tests start.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and is_available("triton")
BACKENDS = ["sorted", "auto", "grouped_mm", "batched_mm", *(["triton"] if INTERPRETED else [])]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register_experts_backends()


@pytest.mark.parametrize("skips", [False, True], ids=["all", "skips"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("transposed", [False, True], ids=["EFD", "EDF"])
@pytest.mark.parametrize(
    ("act", "gated"), [("gelu_new", False), ("gelu", False), ("relu2", False), ("silu", True), ("gelu", True)]
)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradient_are_the_references(backend, dtype, act, gated, transposed, biased, skips) -> None:
    layout = {"gated": gated, "transposed": transposed, "biased": biased}
    expert, weight = routes(skips)
    experts, reference = make(backend, act, dtype, **layout), make("eager", act, dtype, **layout).float()
    # transformers 5.23 looks for skipped slots only where this is set.
    experts._is_expert_parallel = skips
    found = value_and_gradients(experts, tokens_for(dtype), expert, weight.to(dtype))
    expected = value_and_gradients(reference, tokens_for(dtype).float(), expert, weight.to(dtype).float())
    if skips and backend.endswith("_mm"):
        # transformers 5.17 gives skipped slots a gradient.
        found["weight"] = found["weight"].masked_fill(expert == E, 0)
    assert found["out"].dtype == dtype
    assert_equal_within(found, expected, TOLERANCE[dtype])


def model_results(model: nn.Module, backend: str, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.set_experts_implementation(backend)
    model.zero_grad()
    out = model(token_ids, labels=token_ids)
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {**gradients, "logits": out.logits.detach()}


@pytest.mark.parametrize("backend", ["sorted", "auto"])
@pytest.mark.parametrize("kind", MODELS)
def test_other_models_run_on_them_unchanged(kind: str, backend: str, token_ids: torch.Tensor) -> None:
    model_class, config = MODELS[kind]
    torch.manual_seed(0)
    model = model_class(config()).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    expected = model_results(model, "eager", token_ids)
    assert_equal_within(model_results(model, backend, token_ids), expected, 1e-5)


def test_all_are_registered_under_their_names() -> None:
    for name, backend in EXPERTS_BACKENDS.items():
        assert ExpertsInterface()[name] is backend


@pytest.mark.parametrize("backend", ["sorted", "auto"])
def test_odd_widths_run(backend: str, tiny_model, token_ids: torch.Tensor) -> None:
    model = tiny_model(moe_intermediate_size=19)
    expected = model_results(model, "eager", token_ids)
    assert_equal_within(model_results(model, backend, token_ids), expected, 1e-5)


@pytest.mark.parametrize(("width", "dtype", "runs"), [(20, torch.float32, True), (20, torch.bfloat16, False)])
def test_grouped_mm_is_known_to_want_rows_of_16_bytes(tiny_model, width: int, dtype, runs: bool) -> None:
    experts = tiny_model(moe_intermediate_size=width).to(dtype).model.layers[0].mlp.experts
    assert grouped_mm_runs(stack_of(experts)[0]) is runs
    assert not grouped_mm_runs(stack_of(experts.double())[0])


@pytest.mark.skipif(not is_available("triton") or INTERPRETED, reason="needs Triton, not interpreted")
def test_triton_wants_a_gpu() -> None:
    experts = make("triton", "gelu", torch.float32, gated=False, transposed=False, biased=True)
    with pytest.raises(BackendUnavailableError, match=r"needs tensors on a GPU, got 'cpu'; use 'sorted'"):
        experts(tokens_for(), *routes(skips=False))


@pytest.mark.parametrize("backend", ["sorted", *(["triton"] if INTERPRETED else [])])
def test_they_compile_into_one_graph(backend: str) -> None:
    experts = make(backend, "gelu_new", torch.float32, gated=False, transposed=False, biased=True)
    expected = value_and_gradients(experts, tokens_for(), *routes(skips=False))
    experts.zero_grad()
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    compiled.named_parameters = experts.named_parameters
    assert_equal_within(value_and_gradients(compiled, tokens_for(), *routes(skips=False)), expected, 1e-6)


@pytest.mark.skipif(is_available("scattermoe"), reason="scattermoe is installed")
def test_scattermoe_says_how_to_get_it() -> None:
    experts = make("scattermoe", "gelu", torch.float32, gated=False, transposed=False, biased=True)
    with pytest.raises(BackendUnavailableError, match=r"experts_implementation='scattermoe'.*pip install"):
        experts(tokens_for(), *routes(skips=False))


def test_an_unknown_activation_of_our_own_experts_runs_on_all(tiny_model, token_ids: torch.Tensor) -> None:
    model = tiny_model(hidden_act="mish")
    expected = model_results(model, "grouped_mm", token_ids)
    for backend in ("eager", "sorted", "auto"):
        assert_equal_within(model_results(model, backend, token_ids), expected, 1e-5)


def test_another_copy_takes_the_names_of_others_but_not_of_our_own_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("somebody else's backend ran")

    monkeypatch.setitem(ExpertsInterface._global_mapping, "sorted", refuse)
    register_experts_backends(replace=False)
    assert ExpertsInterface._global_mapping["sorted"] is refuse
    model = tiny_family("gpt2")
    ids = torch.tensor([[5, 3, 9, 4]])
    expected = model(ids).logits
    model.set_experts_implementation("sorted")
    torch.testing.assert_close(model(ids).logits, expected)
    register_experts_backends()
    assert ExpertsInterface._global_mapping["sorted"] is EXPERTS_BACKENDS["sorted"]
