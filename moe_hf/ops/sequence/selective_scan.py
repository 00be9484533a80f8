"""The selective scan of Mamba: a linear recurrence whose decay, input and readout depend on the token.

Shapes: B batch, S positions, D channels, N state size.
"""

import math
from typing import Any

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.expert_parts import without_autocast
from moe_hf.ops.sequence.scalar_decay import real_starts
from moe_hf.ops.sequence.selective_scan_blocks import (
    ScanInputs,
    backward_pass,
    forward_pass,
    room_for_blocks,
    scan_dtype,
)

_LOG2_E = math.log2(math.e)


def selective_scan(
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`y_t = h_t C_t` with `h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t`, (Gu and Dao 2023, Mamba, section 3.2).

    Equal to `reference_selective_scan` in value and in gradient, which can be taken once. Time is linear in S, and no
    tensor of shape (B, S, D, N) is made: the backward pass keeps one state in 8 to 64 and works the others out again.
    Under torch.compile it is one opaque operator.

    Args:
        u_BSD: the input.
        delta_BSD: step sizes, >= 0, so after softplus.
        a_DN: rates, <= 0.
        b_BSN: how the input enters the state.
        c_BSN: how the state is read.
        initial_state: (B, D, N), the state before the first position; None is zero.
        mask_BS: nonzero at real tokens; padding leaves the state as it is, whatever u, delta and b are there. None
            means that all are real.
        starts_BS: bool, True where a document begins: the state is emptied just before, even of what is not finite.
            At padding none begins. None means nowhere.
        output_final_state: whether to return the state after the last real token.

    Returns:
        (B, S, D) in the dtype of `u_BSD`; and the state, (B, D, N), or None. State and arithmetic are in float64 where
        `u_BSD` is, else in float32 whatever the others are, `initial_state` included.

    Raises:
        ConfigError: shapes do not fit.
    """
    _check(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, initial_state)
    u_BSD, delta_BSD, b_BSN = without_padding((u_BSD, delta_BSD, b_BSN), mask_BS)
    starts_BS = real_starts(starts_BS, mask_BS)
    inputs = (u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, initial_state)
    trains = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y_BSD, state_BDN, _ = _scan(*inputs, starts_BS, trains)
    return y_BSD, state_BDN if output_final_state else None


def selective_scan_step(
    u_BD: torch.Tensor,
    delta_BD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BN: torch.Tensor,
    c_BN: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_B: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One position of `selective_scan`, for decoding: (B, D) in the dtype of `u_BD`, and the new state (B, D, N)."""
    dtype = scan_dtype(u_BD)
    u_BD, delta_BD, b_BN = without_padding((u_BD, delta_BD, b_BN), mask_B)
    delta_BD = delta_BD.to(dtype)
    state_BDN = (delta_BD * u_BD.to(dtype)).unsqueeze(-1) * b_BN.to(dtype).unsqueeze(1)
    if initial_state is not None:
        decay_BDN = torch.exp2((delta_BD * _LOG2_E).unsqueeze(-1) * a_DN.to(dtype))
        state_BDN = torch.addcmul(state_BDN, decay_BDN, initial_state.to(dtype))
    with without_autocast(u_BD):
        # Four times as fast as with the state on the left, once there are several rows.
        y_BD = torch.bmm(c_BN.to(dtype).unsqueeze(1), state_BDN.transpose(1, 2)).squeeze(1)
    return y_BD.to(u_BD.dtype), state_BDN


def reference_selective_scan(
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`selective_scan` position by position, as the paper writes it."""
    _check(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, initial_state)
    dtype = scan_dtype(u_BSD)
    u_BSD, delta_BSD, b_BSN = without_padding((u_BSD, delta_BSD, b_BSN), mask_BS)
    u, delta, a, b, c = (x.to(dtype) for x in (u_BSD, delta_BSD, a_DN, b_BSN, c_BSN))
    starts_BS = real_starts(starts_BS, mask_BS)
    state = u.new_zeros(len(u), *a.shape) if initial_state is None else initial_state.to(dtype)
    starts = torch.zeros_like(u[..., 0], dtype=torch.bool) if starts_BS is None else starts_BS.bool()
    outputs = []
    for u_t, delta_t, b_t, c_t, start_t in zip(*(x.unbind(1) for x in (u, delta, b, c, starts)), strict=True):
        state = torch.where(start_t[:, None, None], 0, state)
        state = torch.exp(delta_t[:, :, None] * a) * state + (delta_t * u_t)[:, :, None] * b_t[:, None, :]
        outputs.append((state * c_t[:, None, :]).sum(dim=-1))
    return torch.stack(outputs, dim=1).to(u_BSD.dtype), state if output_final_state else None


def without_padding(inputs: tuple[torch.Tensor, ...], mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The inputs with zeros at padding: a step of size 0 neither decays nor writes.

    Args:
        inputs: step sizes and what they multiply, for else what is not finite would pass; each (*mask.shape, ...).
        mask: nonzero at real tokens; None means that all are.
    """
    if mask is None:
        return inputs
    absent = mask == 0
    return tuple(x.masked_fill(absent.view(*absent.shape, *[1] * (x.ndim - absent.ndim)), 0) for x in inputs)


def _check(
    u: torch.Tensor,
    delta: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    state: torch.Tensor | None,
) -> None:
    shapes = {"u": u.shape, "delta": delta.shape, "a": a.shape, "b": b.shape, "c": c.shape}
    fits = u.ndim == 3 and a.ndim == 2 and delta.shape == u.shape and len(a) == u.shape[2]
    if not fits or not b.shape == c.shape == (*u.shape[:2], a.shape[1]):
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ConfigError(
            f"the shapes of {given} do not fit; they must be (B, S, D) for u and delta, (D, N) for a, and (B, S, N) "
            "for b and c"
        )
    expected = (u.shape[0], *a.shape)
    if state is not None and state.shape != expected:
        raise ConfigError(f"initial_state of shape {tuple(state.shape)} does not fit; it must be {expected}")


# The compiler would unroll the loop over positions: this operator is what it sees instead.
@torch.library.custom_op("moe_hf::selective_scan", mutates_args=())
def _scan(
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    initial_BDN: torch.Tensor | None,
    starts_BS: torch.Tensor | None,
    trains: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, the last state, and the states that the backward pass starts from."""
    with without_autocast(u_BSD):
        return forward_pass(ScanInputs(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, initial_BDN, starts_BS), keeps=trains)


@_scan.register_fake
def _scan_fake(
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    initial_BDN: torch.Tensor | None,
    starts_BS: torch.Tensor | None,
    trains: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (batch, length, num_channels), state_size = u_BSD.shape, a_DN.shape[1]
    dtype = scan_dtype(u_BSD)
    num_kept = room_for_blocks(length, state_size, num_channels, u_BSD.device) if trains else 0
    return (
        u_BSD.new_empty(u_BSD.shape),
        u_BSD.new_empty(batch, num_channels, state_size, dtype=dtype),
        u_BSD.new_empty(num_kept, batch, state_size, num_channels, dtype=dtype),
    )


@torch.library.custom_op("moe_hf::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy_BSD: torch.Tensor,
    dfinal_BDN: torch.Tensor | None,
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    starts_BS: torch.Tensor | None,
    kept_KBND: torch.Tensor,
) -> list[torch.Tensor]:
    inputs = ScanInputs(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, None, starts_BS)
    with without_autocast(u_BSD):
        return list(backward_pass(inputs, kept_KBND, dy_BSD, dfinal_BDN))


@_scan_backward.register_fake
def _scan_backward_fake(
    dy_BSD: torch.Tensor,
    dfinal_BDN: torch.Tensor | None,
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    starts_BS: torch.Tensor | None,
    kept_KBND: torch.Tensor,
) -> list[torch.Tensor]:
    batch, state_size, num_channels = kept_KBND.shape[1:]
    shapes = [x.shape for x in (u_BSD, delta_BSD, a_DN, b_BSN, c_BSN)]
    return [kept_KBND.new_empty(shape) for shape in (*shapes, (batch, num_channels, state_size))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    *tensors, initial_BDN, starts_BS, _ = inputs
    # Without this the absent gradients of the states would be made, as zeros of their size.
    ctx.set_materialize_grads(False)
    ctx.initial_dtype = None if initial_BDN is None else initial_BDN.dtype
    ctx.save_for_backward(*tensors, starts_BS, output[2])


def _differentiate(
    ctx: Any, dy_BSD: torch.Tensor | None, dfinal_BDN: torch.Tensor | None, _: None
) -> tuple[torch.Tensor | None, ...]:
    tensors = ctx.saved_tensors
    dy_BSD = tensors[0].new_zeros(tensors[0].shape) if dy_BSD is None else dy_BSD
    *gradients, dinitial_BDN = _scan_backward(dy_BSD, dfinal_BDN, *tensors)
    du, ddelta, da, db, dc = (gradient.to(x.dtype) for gradient, x in zip(gradients, tensors[:5], strict=True))
    dinitial = None if ctx.initial_dtype is None else dinitial_BDN.to(ctx.initial_dtype)
    return du, ddelta, da, db, dc, dinitial, None, None


_scan.register_autograd(_differentiate, setup_context=_keep)
