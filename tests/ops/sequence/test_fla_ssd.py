"""How Mamba-2's scan is put to a kernel that knows no groups of heads; the package itself computes on GPUs only."""

import pytest
import torch

from moe_hf.ops.sequence import fla_ssd
from moe_hf.ops.sequence.scalar_decay import scalar_decay
from moe_hf.ops.sequence.ssd import ssd, ssd_example


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own recurrence in the place of the kernel, as the kernel takes its arguments."""

    def kernel(query, key, value, log_decay, **options):
        assert query.shape[2] == key.shape[2] == value.shape[2]
        return scalar_decay(query, key, value, log_decay, **options)

    monkeypatch.setattr(fla_ssd, "fla_scalar_decay", kernel)


@pytest.mark.parametrize("names", [(), ("initial_state", "mask_BS"), ("starts_BS",)])
def test_groups_become_heads_and_all_else_stays(names: tuple[str, ...]) -> None:
    args, _ = ssd_example(torch.device("cpu"))
    state = ssd(*args)[1]
    assert state is not None
    options = {"initial_state": state, "mask_BS": torch.arange(140).view(2, 70) % 7 != 3}
    options["starts_BS"] = torch.arange(140).view(2, 70) % 23 == 5
    chosen = {name: options[name] for name in names}
    for ours, theirs in zip(ssd(*args, **chosen), fla_ssd.fla_ssd(*args, **chosen), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_inputs_give_what_ours_gives() -> None:
    (u, delta, a, b, c), _ = ssd_example(torch.device("cpu"))
    half = (u.bfloat16(), delta, a, b.bfloat16(), c.bfloat16())
    (ours, _), (theirs, _) = ssd(*half), fla_ssd.fla_ssd(*half)
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).norm() <= 1e-2 * ours.norm()
