"""Mamba-2's scan: its equations, with step sizes, and its single steps."""

import pytest
import torch

from moe_hf.ops.sequence.ssd import ssd, ssd_step

B, S, H, G, K, V = 3, 9, 4, 2, 5, 6


def make_inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (B, S, H, V), (B, S, H), (H,), (B, S, G, K), (B, S, G, K)
    u, delta, a, b, c = (torch.randn(shape, generator=generator) for shape in shapes)
    return u, delta.exp(), -a.exp(), b, c


def test_it_is_the_recurrence_of_the_paper() -> None:
    u, delta, a, b, c = make_inputs()
    ours, last = ssd(u, delta, a, b, c)
    state, expected = torch.zeros(B, H, K, V), torch.zeros(B, S, H, V)
    for t in range(S):
        for head in range(H):
            group = head // (H // G)
            decay = torch.exp(delta[:, t, head] * a[head])[:, None, None]
            added = delta[:, t, head, None, None] * b[:, t, group, :, None] * u[:, t, head, None, :]
            state[:, head] = decay * state[:, head] + added
            expected[:, t, head] = (c[:, t, group, :, None] * state[:, head]).sum(1)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("trains", [False, True])
def test_steps_are_the_scan_in_value_and_gradient(trains: bool) -> None:
    inputs = [x.requires_grad_() for x in make_inputs()]
    first = torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(1), requires_grad=True)
    mask = torch.arange(B * S).view(B, S) % 4 != 2
    u, delta, a, b, c = inputs
    with torch.set_grad_enabled(trains):
        whole, last = ssd(*inputs, initial_state=first, mask_BS=mask)
        state, outputs = first, []
        for t in range(S):
            given = state.clone()
            y, state = ssd_step(u[:, t], delta[:, t], a, b[:, t], c[:, t], initial_state=given, mask_B=mask[:, t])
            outputs.append(y)
    steps = torch.stack(outputs, dim=1)
    torch.testing.assert_close(steps[mask], whole[mask])
    torch.testing.assert_close(state, last)
    if trains:
        ours, theirs = (
            torch.autograd.grad(out[mask].square().sum() + end.sum(), [*inputs, first])
            for out, end in ((steps, state), (whole, last))
        )
        for our, their in zip(ours, theirs, strict=True):
            assert (our - their).norm() <= 2e-6 * their.norm()


def test_what_stands_at_padding_neither_is_read_nor_begins_a_document() -> None:
    u, delta, a, b, c = make_inputs()
    mask = torch.arange(B * S).view(B, S) % 4 != 2
    starts = torch.arange(B * S).view(B, S) % 5 == 2
    assert (starts & ~mask).any()
    expected, last = ssd(u, delta, a, b, c, mask_BS=mask, starts_BS=starts & mask)
    for x in (u, delta, b):
        x[~mask] = torch.nan
    ours, state = ssd(u, delta, a, b, c, mask_BS=mask, starts_BS=starts)
    torch.testing.assert_close(ours[mask], expected[mask])
    torch.testing.assert_close(state, last)
    given = torch.ones(B, H, K, V)
    _, after = ssd_step(u[:, 2], delta[:, 2], a, b[:, 2], c[:, 2], initial_state=given, mask_B=mask[:, 2])
    assert not mask[:, 2].all()
    assert torch.equal(after[~mask[:, 2]], given[~mask[:, 2]])


def test_a_step_does_not_write_to_the_state_it_is_given() -> None:
    u, delta, a, b, c = (x[:, 0] if x.ndim > 1 else x for x in make_inputs())
    given = torch.ones(B, H, K, V)
    with torch.no_grad():
        _, state = ssd_step(u, delta, a, b, c, initial_state=given)
    assert (given == 1).all()
    assert not torch.equal(state, given)


def test_a_first_step_starts_from_nothing() -> None:
    u, delta, a, b, c = (x[:, 0] if x.ndim > 1 else x for x in make_inputs())
    for ours, theirs in zip(
        ssd_step(u, delta, a, b, c), ssd_step(u, delta, a, b, c, initial_state=torch.zeros(B, H, K, V)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
