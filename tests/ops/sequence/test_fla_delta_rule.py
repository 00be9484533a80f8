"""What is handed to flash-linear-attention's delta rule and what becomes of its answer, by a stand-in of its shapes.

The package computes on GPUs only: what can be tested without one is that its layout and ours meet.
"""

from types import ModuleType

import pytest
import torch

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.ops.sequence import fla_delta_rule
from moe_hf.ops.sequence.backends import pick_kernel
from moe_hf.ops.sequence.fla_delta_rule import FLA_DELTA_RULE


def chunk_dplr_delta_rule(q, k, v, a, b, gk, scale=None, initial_state=None, output_final_state=False):
    """All of (B, T, H, K or V), states of (B, H, K, V); a scale that is left out is one over the root of K."""
    assert q.dtype == k.dtype == v.dtype == a.dtype == b.dtype
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    batch, length, heads, width = q.shape
    state = q.new_zeros(batch, heads, width, v.shape[-1], dtype=torch.float32)
    state = state if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        found = torch.einsum("bhkv,bhk->bhv", state, a[:, t].float())
        written = b[:, t, :, :, None] * found[:, :, None] + k[:, t, :, :, None] * v[:, t, :, None]
        state = state * gk[:, t].exp()[..., None] + written
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, scale * q[:, t].float()))
    return torch.stack(outputs, dim=1).to(v.dtype), state if output_final_state else None


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's module, with the function in it."""
    module = ModuleType("rule")
    vars(module)["chunk_dplr_delta_rule"] = chunk_dplr_delta_rule
    monkeypatch.setattr(fla_delta_rule, "require", lambda name, purpose: ModuleType(name))
    modules = {"fla.ops.generalized_delta_rule": module}
    monkeypatch.setattr(fla_delta_rule.importlib, "import_module", modules.__getitem__)


@pytest.mark.parametrize("names", [(), ("initial_state",), ("mask_BS",), ("starts_BS",), ("initial_state", "mask_BS")])
def test_the_kernel_is_called_so_that_it_gives_what_ours_gives(names: tuple[str, ...]) -> None:
    args, _ = FLA_DELTA_RULE.example(torch.device("cpu"))
    with torch.no_grad():
        options = {
            "initial_state": torch.randn_like(FLA_DELTA_RULE.ours(*args)[1]),
            "mask_BS": torch.arange(140).view(2, 70) % 7 != 3,
            "starts_BS": torch.arange(140).view(2, 70) % 23 == 5,
        }
        chosen = {name: options[name] for name in names}
        for ours, theirs in zip(FLA_DELTA_RULE.ours(*args, **chosen), FLA_DELTA_RULE.run(*args, **chosen), strict=True):
            real = options["mask_BS"] if "mask_BS" in names and ours.shape[:2] == (2, 70) else slice(None)
            assert (ours[real] - theirs[real]).norm() <= 1e-5 * ours[real].norm()


def test_half_precision_values_give_half_precision_outputs() -> None:
    (r, w, k, v, a, b), _ = FLA_DELTA_RULE.example(torch.device("cpu"))
    with torch.no_grad():
        out, state = FLA_DELTA_RULE.run(r, w, k, v.bfloat16(), a, b)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_by_name_it_is_refused_where_there_is_no_gpu() -> None:
    assert pick_kernel("auto", (FLA_DELTA_RULE,), torch.device("cpu")) is None
    with pytest.raises(BackendUnavailableError, match="runs on CUDA only"):
        pick_kernel("fla", (FLA_DELTA_RULE,), torch.device("cpu"))
