"""The drop-in MoE in hosts that know nothing of this package: shapes, gradients, the balance loss, and copies."""

import copy
import io
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_hf import MoE
from moe_hf.base.errors import ConfigError

B, S, D, E = 3, 7, 20, 4
HOST = SimpleNamespace(n_embd=D)


def make(config=HOST, seed: int = 0, spread: float = 0.3, **options) -> MoE:
    torch.manual_seed(seed)
    moe = MoE(config, **{"num_experts": E, **options})
    # Far from zero, so that the router has opinions and every expert another output.
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=spread)
    return moe


@pytest.fixture
def x_BSD() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1))


def total_loss(moe: MoE, x_BSD: torch.Tensor) -> torch.Tensor:
    return moe(x_BSD).square().mean() + moe.get_load_balance_loss()


def gradients(moe: MoE) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in moe.named_parameters()}


@pytest.mark.parametrize("shape", [(D,), (5, D), (B, S, D), (2, 3, 4, D), (0, D)])
def test_any_leading_dimensions_come_back(shape: tuple[int, ...]) -> None:
    assert make()(torch.randn(shape)).shape == shape


def test_output_is_the_weighted_sum_of_the_chosen_experts(x_BSD: torch.Tensor) -> None:
    moe = make(d_expert=11)
    experts, tokens = moe.experts, x_BSD.view(-1, D)
    probability = (tokens @ moe.gate.weight.T).softmax(dim=-1)
    weight, chosen = probability.topk(2, dim=-1)
    weight = weight / weight.sum(dim=-1, keepdim=True)
    expected = torch.zeros_like(tokens)
    for token in range(len(tokens)):
        for slot in range(2):
            e = int(chosen[token, slot])
            hidden = nn.functional.gelu(experts.up_proj[e] @ tokens[token] + experts.up_proj_bias[e])
            expected[token] += weight[token, slot] * (experts.down_proj[e] @ hidden + experts.down_proj_bias[e])
    assert experts.up_proj.shape == (E, 11, D)
    torch.testing.assert_close(moe(x_BSD), expected.view_as(x_BSD))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sorted", "grouped_mm", "batched_mm", "auto"])
def test_every_backend_computes_the_same(bias: bool, implementation: str, x_BSD: torch.Tensor) -> None:
    moe = make(SimpleNamespace(n_embd=D, bias=bias))
    moe.experts_implementation = "eager"
    total_loss(moe, x_BSD).backward()
    expected_output, expected = moe(x_BSD), gradients(moe)
    moe.zero_grad()
    moe.experts_implementation = implementation
    assert moe.experts_implementation == implementation
    torch.testing.assert_close(moe(x_BSD), expected_output)
    total_loss(moe, x_BSD).backward()
    for name, gradient in gradients(moe).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    assert ("experts.up_proj_bias" in expected) == bias


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_router_learns_from_the_output_alone(top_k: int, x_BSD: torch.Tensor) -> None:
    moe = make(top_k=top_k)
    moe(x_BSD).square().mean().backward()
    assert moe.gate.weight.grad.abs().max() > 1e-4


def test_balance_loss_is_the_squared_variation_of_importance(x_BSD: torch.Tensor) -> None:
    moe = make(load_balance_weight=0.25)
    moe(x_BSD)
    _, weight, chosen = moe.gate(x_BSD)
    importance = torch.stack([weight[chosen == e].sum() for e in range(E)])
    expected = importance.var(correction=0) / importance.mean() ** 2
    torch.testing.assert_close(moe.get_load_balance_loss(weighted=False), expected)
    torch.testing.assert_close(moe.get_load_balance_loss(), 0.25 * expected)


def test_balance_loss_is_zero_at_balance_and_largest_at_collapse() -> None:
    moe = make(top_k=1)
    with torch.no_grad():
        moe.gate.weight.zero_()
        moe.gate.weight[:, :E] = 50 * torch.eye(E)
    moe(torch.eye(D)[:E].repeat(5, 1))
    assert moe.get_load_balance_loss(weighted=False).item() == pytest.approx(0.0, abs=1e-6)
    assert moe.expert_utilization().tolist() == [0.25] * 4
    moe(torch.eye(D)[:1].repeat(5, 1))
    assert moe.get_load_balance_loss(weighted=False).item() == pytest.approx(E - 1)
    assert moe.expert_utilization().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_following_the_balance_loss_balances() -> None:
    moe = make(load_balance_weight=1.0, top_k=1)
    x_TD = torch.randn(200, D, generator=torch.Generator().manual_seed(2)) + 1.0
    moe(x_TD)
    before = moe.get_load_balance_loss().item()
    optimizer = torch.optim.Adam([moe.gate.weight], lr=0.02)
    for _ in range(40):
        moe(x_TD)
        moe.get_load_balance_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    moe(x_TD)
    assert moe.get_load_balance_loss().item() < 0.1 * before
    assert moe.expert_utilization().min() > 0.1


def test_balance_loss_speaks_of_the_last_forward_only(x_BSD: torch.Tensor) -> None:
    moe = make()
    moe(x_BSD)
    first = moe.get_load_balance_loss()
    moe(3 * x_BSD[:1])
    assert moe.get_load_balance_loss() != first
    moe(x_BSD)
    assert torch.equal(moe.get_load_balance_loss(), first)
    # Asking changes nothing.
    assert torch.equal(moe.get_load_balance_loss(), first)


@pytest.mark.parametrize("method", ["get_load_balance_loss", "expert_utilization"])
def test_asking_before_any_forward_is_told_what_to_do(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"{method}\(\) speaks of the last forward.*call the module first"):
        getattr(make(), method)()


def test_eval_and_no_grad_keep_no_graph(x_BSD: torch.Tensor) -> None:
    moe = make().eval()
    x_BSD.requires_grad_()
    moe(x_BSD)
    assert not moe.get_load_balance_loss().requires_grad
    assert not moe._routed.weight_TK.requires_grad
    moe.train()
    with torch.no_grad():
        moe(x_BSD)
        assert moe.get_load_balance_loss() > 0


def test_a_loss_that_could_teach_nothing_is_refused(x_BSD: torch.Tensor) -> None:
    moe = make()
    checkpoint(moe, x_BSD.requires_grad_(), use_reentrant=True)
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        moe.get_load_balance_loss()
    # A frozen router is not taught anyway.
    moe.gate.weight.requires_grad_(False)
    assert moe.get_load_balance_loss() > 0


def test_after_backward_no_activation_is_kept_alive(x_BSD: torch.Tensor) -> None:
    moe = make()
    scale = torch.ones(D, requires_grad=True)
    hidden = torch.tanh(x_BSD * scale)
    alive = weakref.ref(hidden)
    loss = total_loss(moe, hidden)
    del hidden
    # tanh saves its output.
    assert alive() is not None
    loss.backward()
    del loss
    assert alive() is None
    assert moe.get_load_balance_loss() > 0


class Block(nn.Module):
    """A host's block: norm, then the feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.mlp = make()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


def test_checkpointing_the_host_s_block_changes_neither_loss_nor_gradient(x_BSD: torch.Tensor) -> None:
    block = Block()
    plain = block(x_BSD).square().mean() + block.mlp.get_load_balance_loss()
    plain.backward()
    expected = gradients(block)
    block.zero_grad()
    output = checkpoint(block, x_BSD, use_reentrant=False)
    routed = block.mlp._routed
    loss = output.square().mean() + block.mlp.get_load_balance_loss()
    loss.backward()
    assert torch.equal(loss, plain)
    for name, gradient in gradients(block).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    # The second run of forward, within backward, left no graph behind.
    assert block.mlp._routed is routed


@pytest.mark.parametrize(("implementation", "fullgraph"), [("batched_mm", True), ("auto", True)])
def test_compiled_equals_eager(implementation: str, fullgraph: bool, x_BSD: torch.Tensor) -> None:
    torch._dynamo.reset()
    moe = make()
    total_loss(moe, x_BSD).backward()
    expected, expected_loss = gradients(moe), moe.get_load_balance_loss()
    moe.zero_grad()
    moe.experts_implementation = implementation
    compiled = torch.compile(moe, fullgraph=fullgraph, backend="aot_eager")
    (compiled(x_BSD).square().mean() + moe.get_load_balance_loss()).backward()
    torch.testing.assert_close(moe.get_load_balance_loss(), expected_loss)
    for name, gradient in gradients(moe).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    moe.eval()
    compiled(x_BSD)
    assert not moe.get_load_balance_loss().requires_grad


def test_bfloat16_and_autocast_stay_close_and_balance_in_float32(x_BSD: torch.Tensor) -> None:
    moe = make(spread=0.1)
    expected = moe(x_BSD)
    loss = moe.get_load_balance_loss(weighted=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = moe(x_BSD)
        autocast_loss = moe.get_load_balance_loss(weighted=False)
    torch.testing.assert_close(autocast.float(), expected, rtol=0.05, atol=0.02)
    # The router does not look at the autocast.
    assert torch.equal(autocast_loss, loss)
    half = copy.deepcopy(moe).bfloat16()
    output = half(x_BSD.bfloat16())
    assert output.dtype == torch.bfloat16
    assert half.get_load_balance_loss().dtype == torch.float32
    torch.testing.assert_close(half.get_load_balance_loss(weighted=False), loss, rtol=0.1, atol=0.01)


def test_copies_and_pickles_work_in_the_middle_of_training(x_BSD: torch.Tensor) -> None:
    moe = make()
    total_loss(moe, x_BSD)
    twin = copy.deepcopy(moe)
    assert torch.equal(twin.get_load_balance_loss(), moe.get_load_balance_loss())
    assert not twin.get_load_balance_loss().requires_grad
    assert moe.get_load_balance_loss().requires_grad
    twin.experts_implementation = "eager"
    assert moe.experts_implementation == "auto"
    file = io.BytesIO()
    torch.save(moe, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x_BSD), moe(x_BSD))


def test_state_dict_goes_round_and_holds_parameters_only(x_BSD: torch.Tensor) -> None:
    moe, other = make(), make(seed=5)
    moe(x_BSD)
    assert set(moe.state_dict()) == {name for name, _ in moe.named_parameters()}
    other.load_state_dict(moe.state_dict())
    assert torch.equal(other(x_BSD), moe(x_BSD))


def test_fresh_weights_do_not_wait_for_the_host_to_draw_them() -> None:
    def init_linears(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 7.0)

    torch.manual_seed(0)
    moe = MoE(SimpleNamespace(hidden_size=64, initializer_range=0.05), num_experts=E).apply(init_linears)
    for name, parameter in moe.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1)


def test_a_module_from_the_meta_device_is_drawn_by_reset_parameters() -> None:
    with torch.device("meta"):
        moe = MoE(HOST, num_experts=E)
    moe = moe.to_empty(device="cpu")
    torch.manual_seed(0)
    moe.reset_parameters()
    torch.manual_seed(0)
    drawn = MoE(HOST, num_experts=E)
    drawn.reset_parameters()
    assert moe(torch.ones(2, D)).isfinite().all()
    assert all(parameter.abs().max() < 0.2 for parameter in moe.parameters())


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_agree_with_finite_differences(top_k: int) -> None:
    moe = make(top_k=top_k, d_expert=3).double()
    # The router computes in float32, so only the experts' side is exact enough.
    x_TD = torch.randn(4, D, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    moe.gate.requires_grad_(False)

    def output_of(up_proj: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(moe, {"experts.up_proj": up_proj}, (x_TD,))

    assert torch.autograd.gradcheck(output_of, (moe.experts.up_proj.detach().requires_grad_(),))


def test_the_host_s_config_is_read(x_BSD: torch.Tensor) -> None:
    moe = make(SimpleNamespace(hidden_size=D, dropout=0.9, hidden_act="relu", bias=False))
    assert isinstance(moe.experts.act_fn, nn.ReLU)
    assert moe.experts.up_proj.shape == (E, 4 * D, D)
    dropped = (moe(x_BSD) == 0).float().mean().item()
    assert dropped == pytest.approx(0.9, abs=0.1)
    assert (moe.eval()(x_BSD) == 0).float().mean().item() < 0.05
    gpt2 = make(SimpleNamespace(n_embd=D, activation_function="gelu_new", resid_pdrop=0.1, dropout=None))
    assert gpt2.dropout.p == 0.1
    assert gpt2.experts.act_fn.approximate == "tanh"


def test_works_with_transformers_own_configs(x_BSD: torch.Tensor) -> None:
    from transformers import GPT2Config, LlamaConfig

    assert make(GPT2Config(n_embd=D, n_head=2))(x_BSD).shape == x_BSD.shape
    llama = make(LlamaConfig(hidden_size=D, num_attention_heads=2))
    assert isinstance(llama.experts.act_fn, nn.SiLU) or "SiLU" in type(llama.experts.act_fn).__name__


def test_a_config_without_a_width_is_told_what_it_has() -> None:
    with pytest.raises(ConfigError, match=r"n_embd or hidden_size.*SimpleNamespace.*it has dropout, width"):
        MoE(SimpleNamespace(width=8, dropout=0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, r"num_experts=0, top_k=2"),
        ({"num_experts": 4, "top_k": 5}, r"top_k=5; .*1 to num_experts"),
        ({"top_k": 0}, r"top_k=0"),
        ({"load_balance_weight": -0.1}, r"load_balance_weight must be >= 0, got -0\.1"),
        ({"d_expert": 0}, r"d_expert must be at least 1, got 0; None means 4 x 20"),
        ({"config": SimpleNamespace(n_embd=D, hidden_act="gellu")}, r"'gellu'.*did you mean 'gelu'"),
    ],
)
def test_values_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoE(**{"config": HOST, **options})


@pytest.mark.parametrize(
    "given",
    [{"num_experts": "x"}, {"top_k": True}, {"load_balance_weight": float("nan")}, {"load_balance_weight": "x"},
     {"d_expert": 0.5}, {"n_embd": "x"}, {"n_embd": 0}, {"dropout": float("nan")}, {"initializer_range": -1}],
)  # fmt: skip
def test_an_odd_value_is_refused(given) -> None:
    host = {"n_embd": 8, **{name: given[name] for name in given if name not in ("num_experts", "top_k", "d_expert")}}
    own = {name: value for name, value in given.items() if name not in ("n_embd", "dropout", "initializer_range")}
    with pytest.raises(ConfigError, match="got"):
        MoE(SimpleNamespace(**host), **own)
