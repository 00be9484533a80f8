"""The experts: all backends equal to a plain loop, in value and gradient, also at the edges."""

import math

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.layers.experts.experts import Experts

T, D, E, K, F = 13, 16, 5, 2, 24
BACKENDS = ["eager", "batched_mm", "grouped_mm", "sorted", "auto"]
# (relative to the largest entry) what rounding alone does to sums of this length
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture
def make_experts(tiny_config):
    def make(backend: str, dtype: torch.dtype = torch.float32) -> Experts:
        config = tiny_config(
            hidden_size=D,
            moe_intermediate_size=F,
            num_experts=E,
            num_experts_per_tok=K,
            experts_implementation=backend,
        )
        experts = Experts(config)
        generator = torch.Generator().manual_seed(0)
        for parameter in experts.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        return experts.to(dtype)

    return make


def routes(kind: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    expert = torch.rand(tokens, E, generator=generator).topk(K).indices
    if kind == "one expert":
        expert = torch.stack([torch.full((tokens,), 3), torch.arange(tokens) % 3], dim=1)
    if kind == "some unused":
        expert = torch.tensor([[0, 4]]).repeat(tokens, 1)
    weight = torch.rand(tokens, K, generator=generator) + 0.1
    return expert, weight / weight.sum(-1, keepdim=True)


def by_hand(experts: Experts, x: torch.Tensor, expert: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A token at a time, GELU written out."""
    rows = []
    for token in range(len(x)):
        row = torch.zeros(D)
        for slot in range(K):
            e = int(expert[token, slot])
            hidden = experts.up_proj[e] @ x[token] + experts.up_proj_bias[e]
            hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
            row = row + weight[token, slot] * (experts.down_proj[e] @ hidden + experts.down_proj_bias[e])
        rows.append(row)
    return torch.stack(rows)


def value_and_gradients(experts: Experts, run, x, expert, weight) -> dict[str, torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = run(x, expert, weight)
    # A fixed, uneven direction, so that no gradient cancels.
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    found = {name: parameter.grad for name, parameter in experts.named_parameters()}
    return {**found, "out": out.detach(), "x": x.grad, "weight": weight.grad}


def assert_equal_within(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].isfinite().all(), name
        # The floor is for what is zero in exact arithmetic, as the gradient of a key's bias.
        scale = max(value.float().abs().max().item(), 1e-2)
        torch.testing.assert_close(
            found[name].float(),
            value.float(),
            atol=tolerance * scale,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("kind", ["random", "one expert", "some unused"])
@pytest.mark.parametrize("tokens", [T, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_plain_loop_in_value_and_gradient(make_experts, backend: str, tokens: int, kind: str) -> None:
    x = torch.randn(tokens, D, generator=torch.Generator().manual_seed(1))
    expert, weight = routes(kind, tokens)
    experts, reference = make_experts(backend), make_experts("eager")
    found = value_and_gradients(experts, experts, x, expert, weight)
    expected = value_and_gradients(reference, lambda *args: by_hand(reference, *args), x, expert, weight)
    assert_equal_within(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_stays_near_float32(make_experts, backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    expert, weight = routes("random", T)
    experts = make_experts(backend, dtype)
    reference = make_experts("eager", dtype).float()
    found = value_and_gradients(experts, experts, x, expert, weight.to(dtype))
    expected = value_and_gradients(reference, reference, x.float(), expert, weight.to(dtype).float())
    assert found["out"].dtype == dtype
    assert_equal_within(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_that_nobody_visits_are_not_read(make_experts, backend: str) -> None:
    expert, weight = routes("some unused", T)
    experts, poisoned = make_experts(backend), make_experts(backend)
    for parameter in poisoned.parameters():
        parameter.data[1:4] = float("nan")
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    assert poisoned(x, expert, weight).equal(experts(x, expert, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_uninitialised_memory_never_shows(make_experts, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    expert, weight = routes("random", T)
    experts = make_experts(backend)
    expected = value_and_gradients(experts, experts, x, expert, weight)
    experts.zero_grad()
    # Deterministic mode fills what torch.empty and its kin return with NaN.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        found = value_and_gradients(experts, experts, x, expert, weight)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_within(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", ["batched_mm", "grouped_mm"])
def test_other_backends_skip_the_sentinel_under_expert_parallelism(make_experts, backend: str) -> None:
    # transformers masks it only where this flag is set; older versions want the weight masked as well.
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    expert, weight = routes("random", T)
    expert[::2, 1], weight[::2, 1] = E, 0
    experts = make_experts(backend)
    experts._is_expert_parallel = True
    torch.testing.assert_close(experts(x, expert, weight), make_experts("eager")(x, expert, weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_give_no_output(make_experts, backend: str) -> None:
    out = make_experts(backend)(torch.zeros(0, D), torch.zeros(0, K, dtype=torch.long), torch.zeros(0, K))
    assert out.shape == (0, D)


def test_all_backends_agree_in_the_whole_model(tiny_model, token_ids: torch.Tensor) -> None:
    results = []
    for backend in BACKENDS:
        model = tiny_model(experts_implementation=backend).train()
        out = model(token_ids, labels=token_ids)
        out.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append({**gradients, "logits": out.logits.detach(), "loss": out.loss.detach()})
    for result in results[1:]:
        assert_equal_within(result, results[0], 1e-5)


def test_switching_the_backend_really_switches(tiny_model, token_ids: torch.Tensor, monkeypatch) -> None:
    from transformers.integrations.moe import ExpertsInterface

    calls = []

    def counted(self, hidden_states, top_k_index, top_k_weights):
        calls.append(len(hidden_states))
        return torch.zeros_like(hidden_states)

    ExpertsInterface.register("counted", counted)
    model = tiny_model()
    # grep in the model's own source file would have said that its experts cannot be switched.
    assert model.config._experts_implementation == "auto"
    model.set_experts_implementation("counted")
    assert model.model.layers[0].mlp.experts.config._experts_implementation == "counted"
    model(token_ids)
    assert calls == [21, 21]
    model.set_experts_implementation("eager")
    model(token_ids)
    assert calls == [21, 21]


def test_an_unknown_backend_is_refused(tiny_model) -> None:
    with pytest.raises(ValueError, match=r"no_such_mm.*grouped_mm"):
        tiny_model().set_experts_implementation("no_such_mm")


@pytest.mark.parametrize("field", ["hidden_size", "moe_intermediate_size"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_widths_run_by_default(tiny_model, token_ids, tmp_path, field: str, dtype) -> None:
    model = tiny_model(**{field: 20}).to(dtype)
    logits = model(token_ids).logits
    assert logits.isfinite().all()
    # And after the round trip, although the saved configuration now names the half-precision type.
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert (again.dtype, again.config._experts_implementation) == (dtype, "auto")
    torch.testing.assert_close(again(token_ids).logits, logits)


@pytest.mark.parametrize("backend", ["eager", "sorted", "auto"])
def test_slots_of_the_sentinel_id_are_skipped_without_being_told(make_experts, backend: str) -> None:
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    expert, weight = routes("random", T)
    dropped, zeroed = expert.clone(), weight.clone()
    dropped[::2, 1], zeroed[::2, 1] = E, 0
    experts, reference = make_experts(backend), make_experts("eager")
    found = value_and_gradients(experts, experts, x, dropped, weight)
    expected = value_and_gradients(reference, reference, x, expert, zeroed)
    assert found["weight"][::2, 1].abs().max() == 0
    del found["weight"], expected["weight"]
    assert_equal_within(found, expected, TOLERANCE[torch.float32])
    nothing = torch.full_like(expert, E)
    assert experts(x, nothing, weight).abs().max() == 0


def test_packed_experts_serve_inference_until_they_are_unpacked(make_experts) -> None:
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(1))
    expert, weight = routes("some unused", T)
    experts, plain = make_experts("sorted"), make_experts("sorted")
    experts.pack_for_inference()
    with torch.no_grad():
        torch.testing.assert_close(experts(x, expert, weight), plain(x, expert, weight))
        # A write that goes unseen: only the copy still holds the old weights.
        experts.up_proj.data.zero_()
        torch.testing.assert_close(experts(x, expert, weight), plain(x, expert, weight))
        experts.unpack()
        assert not torch.allclose(experts(x, expert, weight), plain(x, expert, weight))


@pytest.mark.parametrize(("width", "dtype"), [(18, torch.float32), (20, torch.bfloat16)])
def test_odd_widths_with_grouped_mm_by_name_are_an_error(tiny_model, tiny_config, tmp_path, width: int, dtype) -> None:
    from transformers import AutoModelForCausalLM

    from moe_hf import GPT2WithMoE

    model = tiny_model(moe_intermediate_size=width).to(dtype)
    model.save_pretrained(tmp_path)
    text = rf"moe_intermediate_size={width} .* for grouped_mm "
    with pytest.raises(ConfigError, match=text):
        model.set_experts_implementation("grouped_mm")
    with pytest.raises(ConfigError, match=text):
        GPT2WithMoE.from_pretrained(tmp_path, experts_implementation="grouped_mm")
    config = tiny_config(moe_intermediate_size=width, dtype=dtype)
    with pytest.raises(ConfigError, match=text):
        AutoModelForCausalLM.from_config(config, experts_implementation="grouped_mm")
