"""All experts backends give one value and one gradient, for this package's experts and for other models'."""

import os

import pytest
import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PretrainedConfig,
)
from transformers.integrations.moe import ExpertsInterface, use_experts_implementation

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.base.optional import is_available
from moe_hf.layers.experts.activations import activation
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS, grouped_mm_runs, register_experts_backends
from moe_hf.layers.experts.modules import stack_of
from moe_hf.layers.experts.packed_weights import pack_for_inference, unpack
from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.reference import reference_experts

T, D, E, K, F = 11, 16, 4, 2, 8
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# Triton reads the variable when it is imported, so that it has to stand before the tests start.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and is_available("triton")
BACKENDS = ["sorted", "auto", "grouped_mm", "batched_mm", *(["triton"] if INTERPRETED else [])]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register_experts_backends()


class AnyExperts(nn.Module):
    """Experts of any layout that transformers' decorator knows; eager is the reference."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * 0.3)

        self.num_experts = E
        gated, transposed, biased = config.layout
        up, columns = ("gate_up_proj", 2 * F) if gated else ("up_proj", F)
        self.register_parameter(up, draw(E, D, columns) if transposed else draw(E, columns, D))
        self.down_proj = draw(E, F, D) if transposed else draw(E, D, F)
        if biased:
            self.register_parameter(f"{up}_bias", draw(E, columns))
            self.down_proj_bias = draw(E, D)
        self.act_fn = activation(config.hidden_act)

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        return reference_experts(x_TD, expert_TK, weight_TK, *stack_of(self))


def make(backend: str, act: str, dtype: torch.dtype, gated: bool, transposed: bool, biased: bool) -> nn.Module:
    # The decorator changes the class it is given.
    kind = type("Experts", (AnyExperts,), {})
    kind.__init__, kind.forward = AnyExperts.__init__, AnyExperts.forward
    kind = use_experts_implementation(has_gate=gated, is_transposed=transposed, has_bias=biased)(kind)
    config = PretrainedConfig(hidden_act=act, layout=(gated, transposed, biased))
    config._experts_implementation = backend
    return kind(config).to(dtype)


def routes(skips: bool, tokens: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    expert = torch.rand(tokens, E, generator=generator).topk(K).indices
    weight = torch.rand(tokens, K, generator=generator) + 0.1
    if skips:
        expert[::2, 1] = E
        # transformers' own backends want skipped slots to weigh nothing as well.
        weight[::2, 1] = 0
    return expert, weight


def tokens_for(dtype: torch.dtype = torch.float32, tokens: int = T) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def value_and_gradients(experts: nn.Module, x, expert, weight) -> dict[str, torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = experts(x, expert, weight)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    found = {name: parameter.grad for name, parameter in experts.named_parameters()}
    return {**found, "out": out.detach(), "x": x.grad, "weight": weight.grad}


def assert_equal_within(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].float(),
            value.float(),
            # The floor is for what is zero in exact arithmetic, as the gradient of a key's bias.
            atol=tolerance * max(value.abs().max().item(), 1e-2),
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


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


TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS = {
    "mixtral": (MixtralForCausalLM, lambda: MixtralConfig(num_local_experts=4, **TINY)),
    "olmoe": (OlmoeForCausalLM, lambda: OlmoeConfig(num_experts=4, **TINY)),
    "gpt_oss": (GptOssForCausalLM, lambda: GptOssConfig(num_local_experts=4, head_dim=8, **TINY)),
}


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


def test_a_stack_is_read_as_its_model_means_it() -> None:
    layers = {kind: model_class(config()).model.layers[0].mlp for kind, (model_class, config) in MODELS.items()}
    stack, known = stack_of(layers["mixtral"].experts)
    assert known == Activation("silu", "concatenated")
    assert [tuple(part.shape) for part in stack[:2]] == [(4, 40, 32), (4, 32, 20)]
    assert stack[2:] == (None, None)
    stack, known = stack_of(layers["gpt_oss"].experts)
    # Clamped, and with a sigmoid of its own.
    assert known is None
    assert [tuple(part.shape) for part in stack] == [(4, 40, 32), (4, 32, 20), (4, 40), (4, 32)]
    assert not stack.up_EFD.is_contiguous()


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


class TestPacked:
    @pytest.fixture
    def experts(self) -> nn.Module:
        experts = make("sorted", "gelu_new", torch.float32, gated=False, transposed=True, biased=True)
        pack_for_inference(experts)
        return experts

    def count_products_with_packed(self, experts: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        from moe_hf.layers.experts import backends as experts_backends

        calls = []
        original = experts_backends.packed_experts

        def counted(*arguments) -> torch.Tensor:
            calls.append(len(arguments[0]))
            return original(*arguments)

        monkeypatch.setattr(experts_backends, "packed_experts", counted)
        return calls

    @pytest.mark.parametrize("tokens", [T, 1, 0])
    @pytest.mark.parametrize(("act", "gated"), [("gelu_new", False), ("relu2", False), ("silu", True)])
    def test_equal_the_reference(self, tokens: int, act: str, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = {"gated": gated, "transposed": False, "biased": True}
        experts, reference = (make(name, act, torch.float32, **layout) for name in ("sorted", "eager"))
        calls = self.count_products_with_packed(experts, monkeypatch)
        pack_for_inference(experts)
        x, (expert, weight) = tokens_for(tokens=tokens), routes(tokens > 0, tokens)
        with torch.no_grad():
            torch.testing.assert_close(experts(x, expert, weight), reference(x, expert, weight))
        assert calls == [tokens]

    def test_serve_inference_only(self, experts: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.count_products_with_packed(experts, monkeypatch)
        experts(tokens_for(), *routes(skips=False)).sum().backward()
        assert calls == []
        assert experts.up_proj.grad.abs().max() > 0
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            experts(tokens_for(), *routes(skips=False))
        assert calls == []

    def test_go_when_unpacked_or_when_the_weights_change(self, experts, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.count_products_with_packed(experts, monkeypatch)
        arguments = (tokens_for(), *routes(skips=False))
        with torch.no_grad():
            experts.down_proj_bias.add_(1)
            changed = experts(*arguments)
            assert calls == []
            pack_for_inference(experts)
            torch.testing.assert_close(experts(*arguments), changed)
            assert calls == [T]
            unpack(experts)
            unpack(experts)
            experts(*arguments)
        assert calls == [T]

    def test_are_never_saved_or_copied(self, experts: nn.Module) -> None:
        import copy
        import pickle

        assert set(experts.state_dict()) == {"up_proj", "up_proj_bias", "down_proj", "down_proj_bias"}
        assert set(vars(copy.deepcopy(experts))) == set(vars(make("sorted", "gelu", torch.float32, False, True, True)))
        assert len(pickle.dumps(experts.state_dict())) < 3 * sum(p.nbytes for p in experts.parameters())

    def test_are_refused_where_they_cannot_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = {"gated": False, "transposed": False, "biased": True}
        with pytest.raises(ConfigError, match=r"only float32 and bfloat16 weights on a CPU.*float16 on 'cpu'"):
            pack_for_inference(make("sorted", "gelu", torch.float16, **layout))
        with pytest.raises(ConfigError, match=r"float32 on 'meta'"):
            pack_for_inference(make("sorted", "gelu", torch.float32, **layout).to("meta"))
        with pytest.raises(ConfigError, match="activation that packed experts do not know"):
            pack_for_inference(make("sorted", "tanh", torch.float32, **layout))
        with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
            pack_for_inference(make("sorted", "gelu", torch.float32, **layout))
        monkeypatch.setattr("moe_hf.ops.experts.packed.onednn_available", lambda dtype: False)
        with pytest.raises(ConfigError, match=r"multiplies torch.float32 with oneDNN on this CPU"):
            pack_for_inference(make("sorted", "gelu", torch.float32, **layout))


def test_an_unknown_activation_of_our_own_experts_runs_on_all(tiny_model, token_ids: torch.Tensor) -> None:
    model = tiny_model(hidden_act="mish")
    expected = model_results(model, "grouped_mm", token_ids)
    for backend in ("eager", "sorted", "auto"):
        assert_equal_within(model_results(model, backend, token_ids), expected, 1e-5)


def test_what_a_module_learns_besides_its_stacks_gets_its_gradient() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.7))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z.clamp(min=0) + self.slope * z.clamp(max=0)

    results = []
    for backend in ("batched_mm", "sorted"):
        experts = make(backend, "gelu", torch.float32, gated=False, transposed=False, biased=True)
        experts.act_fn = Slope()
        experts.has_post_expert_norm, experts.post_expert_norm = True, nn.RMSNorm(D)
        results.append(value_and_gradients(experts, tokens_for(), *routes(skips=False)))
    if "has_post_expert_norm" in use_experts_implementation.__kwdefaults__:
        assert_equal_within(results[1], results[0], 1e-5)
    else:
        assert results[1]["post_expert_norm.weight"].abs().max() > 0
