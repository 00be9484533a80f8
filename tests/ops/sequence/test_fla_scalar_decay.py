"""What is handed to flash-linear-attention's kernel and what becomes of its answer, by a stand-in of its shape.

The package computes on GPUs only: what can be tested without one is that its layout and ours meet.
"""

import inspect
from itertools import pairwise
from types import ModuleType

import pytest
import torch

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.ops.sequence import fla_scalar_decay as adapter
from moe_hf.ops.sequence.backends import pick_kernel
from moe_hf.ops.sequence.fla_scalar_decay import FLA_SCALAR_DECAY, fla_scalar_decay
from moe_hf.ops.sequence.scalar_decay import scalar_decay

B, S, H, K, V = 2, 21, 3, 4, 5


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None, **kwargs
):
    """(B, T, H, ...) in and out; with `cu_seqlens` one row of N documents, which have a state each."""
    assert q.dtype == k.dtype == v.dtype
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    # (It has no gradient for `g_gamma`.)
    decay = (g_gamma.detach().expand(*v.shape[:3]) if g is None else g).exp()
    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    assert cu_seqlens is None or len(q) == 1
    outputs, states = [], []
    for index, (start, stop) in enumerate(pairwise(bounds)):
        rows = slice(None) if cu_seqlens is None else slice(index, index + 1)
        shape = (len(v), v.shape[2], q.shape[3], v.shape[3])
        state = torch.zeros(shape) if initial_state is None else initial_state[rows]
        for t in range(start, stop):
            state = decay[:, t, :, None, None] * state + k[:, t, :, :, None].float() * v[:, t, :, None].float()
            outputs.append((scale * q[:, t, :, :, None].float() * state).sum(2).to(v.dtype))
        states.append(state)
    return torch.stack(outputs, dim=1), torch.cat(states) if output_final_state else None


def older_chunk_simple_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """As it was before it knew decays per head."""
    return chunk_simple_gla(q, k, v, g, None, scale, initial_state, output_final_state, cu_seqlens)


@pytest.fixture(params=[chunk_simple_gla, older_chunk_simple_gla])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list:
    """A list that each call of the stand-in makes longer."""
    made: list = []

    def counted(*args, **kwargs):
        made.append(kwargs)
        return request.param(*args, **kwargs)

    counted.__wrapped__ = request.param
    module = ModuleType("simple_gla")
    vars(module)["chunk_simple_gla"] = counted
    monkeypatch.setattr(adapter, "require", lambda name, purpose: ModuleType(name))
    monkeypatch.setattr(adapter.importlib, "import_module", {"fla.ops.simple_gla": module}.__getitem__)
    return made


def draw(per_token: bool, groups: int = H) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (B, S, groups, K), "key": (B, S, groups, K), "value": (B, S, H, V)}
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**inputs, "log_decay": -torch.rand((B, S, H) if per_token else (H,), generator=generator)}


def results(function, inputs: dict[str, torch.Tensor], **options) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs.values()]
    state = options.pop("initial_state", None)
    if state is not None:
        leaves.append(state.clone().requires_grad_())
    out, after = function(*leaves[:4], initial_state=leaves[4] if state is not None else None, **options)
    if options.get("mask_BS") is not None:
        out = out * options["mask_BS"][..., None, None]
    return [out, after, *torch.autograd.grad(out.square().sum() + after.sum(), leaves)]


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("names", [(), ("initial_state",), ("mask_BS",), ("initial_state", "starts_BS", "mask_BS")])
def test_the_kernel_is_called_so_that_it_gives_what_ours_gives(calls, per_token: bool, names: tuple[str, ...]) -> None:
    inputs = draw(per_token)
    # (One at padding, which is none.)
    starts = torch.arange(B * S).view(B, S) % 11 == 0
    starts[1, 3] = True
    assert starts[0, 0]
    assert not starts[1, 0]
    state = torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(1))
    options = {"initial_state": state, "mask_BS": torch.arange(B * S).view(B, S) % 7 != 3, "starts_BS": starts}
    chosen = {name: options[name] for name in names}
    expected = results(scalar_decay, inputs, **chosen)
    for ours, theirs in zip(expected, results(fla_scalar_decay, inputs, **chosen), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * ours.norm()
    assert len(calls) == 1


def test_decays_per_head_that_need_no_gradient_are_not_spread(calls) -> None:
    inputs = draw(False)
    takes_them = "g_gamma" in inspect.signature(inspect.unwrap(adapter._kernel())).parameters
    fla_scalar_decay(*inputs.values())
    fla_scalar_decay(*(x.requires_grad_() for x in inputs.values()))
    with torch.no_grad():
        fla_scalar_decay(*inputs.values())
    assert ["g_gamma" in call for call in calls] == [takes_them, False, takes_them]


def test_queries_and_keys_get_the_type_of_the_values(calls) -> None:
    inputs = draw(False)
    inputs["value"] = inputs["value"].bfloat16()
    out, state = fla_scalar_decay(*inputs.values())
    assert (out.dtype, state.dtype, len(calls)) == (torch.bfloat16, torch.float32, 1)
    assert fla_scalar_decay(*inputs.values(), output_final_state=False)[1] is None


@pytest.mark.parametrize("change", ["shared keys", "float64"])
def test_what_the_kernel_cannot_do_is_left_to_ours(calls, change: str) -> None:
    inputs = draw(True, groups=1 if change == "shared keys" else H)
    if change == "float64":
        inputs = {name: x.double() for name, x in inputs.items()}
    for ours, theirs in zip(scalar_decay(*inputs.values()), fla_scalar_decay(*inputs.values()), strict=True):
        assert theirs.equal(ours)
    assert not calls


def test_the_example_that_it_is_probed_with_is_understood(calls) -> None:
    args, kwargs = FLA_SCALAR_DECAY.example(torch.device("cpu"))
    torch.testing.assert_close(
        FLA_SCALAR_DECAY.run(*args, **kwargs), scalar_decay(*args, **kwargs), rtol=1e-4, atol=1e-4
    )
    assert len(calls) == 1


def test_by_name_it_is_refused_on_a_cpu() -> None:
    with pytest.raises(BackendUnavailableError, match="runs on CUDA only"):
        pick_kernel("fla", (FLA_SCALAR_DECAY,), torch.device("cpu"))
