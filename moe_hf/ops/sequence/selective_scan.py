"""The selective scan of Mamba: a linear recurrence whose decay, input and readout depend on the token.

Shapes: B batch, S positions, D channels, N state size.
"""

import math
from typing import Unpack

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.dtypes import float32_or_more, without_autocast
from moe_hf.ops.operators import needs_gradient, opaque
from moe_hf.ops.sequence.contract import Call, Carried, call_of, zero_padding
from moe_hf.ops.sequence.selective_scan_blocks import ScanInputs, backward_pass, forward_pass, room_for_blocks

_LOG2_E = math.log2(math.e)


def selective_scan(
    u_BSD: torch.Tensor,
    delta_BSD: torch.Tensor,
    a_DN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    **carried: Unpack[Carried],
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
        **carried: as in `contract.Carried`, the state (B, D, N); a start cuts off even what is not finite.

    Returns:
        (B, S, D) in the dtype of `u_BSD`; and the state, (B, D, N), or None. State and arithmetic are in float64 where
        `u_BSD` is, else in float32 whatever the others are, `initial_state` included.

    Raises:
        ConfigError: shapes do not fit.
    """
    call = call_of(**carried)
    inputs = _prepared(ScanInputs(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, call.edges.starts_BS), call)
    y_BSD, state_BDN, _ = _scan(inputs, call.initial_state, needs_gradient(*inputs, call.initial_state))
    return call.result(y_BSD, state_BDN)


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
    dtype = float32_or_more(u_BD)
    u_BD, delta_BD, b_BN = zero_padding(mask_B, u_BD, delta_BD, b_BN)
    delta_BD = delta_BD.to(dtype)
    state_BDN = (delta_BD * u_BD.to(dtype)).unsqueeze(-1) * b_BN.to(dtype).unsqueeze(1)
    if initial_state is not None:
        # Powers of two cost less than powers of e on CPUs.
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
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`selective_scan` position by position, as the paper writes it."""
    call = call_of(**carried)
    *inputs, starts_BS = _prepared(ScanInputs(u_BSD, delta_BSD, a_DN, b_BSN, c_BSN, call.edges.starts_BS), call)
    dtype = float32_or_more(u_BSD)
    u, delta, a, b, c = (x.to(dtype) for x in inputs)
    state = u.new_zeros(len(u), *a.shape) if call.initial_state is None else call.initial_state.to(dtype)
    starts = torch.zeros_like(u[..., 0], dtype=torch.bool) if starts_BS is None else starts_BS.bool()
    outputs = []
    for u_t, delta_t, b_t, c_t, start_t in zip(*(x.unbind(1) for x in (u, delta, b, c, starts)), strict=True):
        state = torch.where(start_t[:, None, None], 0, state)
        state = torch.exp(delta_t[:, :, None] * a) * state + (delta_t * u_t)[:, :, None] * b_t[:, None, :]
        outputs.append((state * c_t[:, None, :]).sum(dim=-1))
    return call.result(torch.stack(outputs, dim=1).to(u_BSD.dtype), state)


def _prepared(inputs: ScanInputs, call: Call) -> ScanInputs:
    """The inputs with steps of size 0 at padding, which neither decay nor write."""
    u, delta, a, b, c, _ = inputs
    fits = u.ndim == 3 and a.ndim == 2 and delta.shape == u.shape and len(a) == u.shape[2]
    if not fits or not b.shape == c.shape == (*u.shape[:2], a.shape[1]):
        shapes = {"u": u.shape, "delta": delta.shape, "a": a.shape, "b": b.shape, "c": c.shape}
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ConfigError(
            f"the shapes of {given} do not fit; they must be (B, S, D) for u and delta, (D, N) for a, and (B, S, N) "
            "for b and c"
        )
    expected, state = (u.shape[0], *a.shape), call.initial_state
    if state is not None and state.shape != expected:
        raise ConfigError(f"initial_state of shape {tuple(state.shape)} does not fit; it must be {expected}")
    # What the steps multiply as well, for else what is not finite would pass.
    u, delta, b = zero_padding(call.edges.mask_BS, u, delta, b)
    return inputs._replace(u_BSD=u, delta_BSD=delta, b_BSN=b)


def _forward(
    inputs: ScanInputs, initial_state: torch.Tensor | None, trains: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, the last state, and the states that the backward pass starts from."""
    with without_autocast(inputs.u_BSD):
        return forward_pass(inputs, initial_state, keeps=trains)


def _forward_shapes(inputs: ScanInputs, trains: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u_BSD = inputs.u_BSD
    (batch, length, num_channels), state_size = u_BSD.shape, inputs.a_DN.shape[1]
    dtype = float32_or_more(u_BSD)
    num_kept = room_for_blocks(length, state_size, num_channels, u_BSD.device) if trains else 0
    return (
        u_BSD.new_empty(u_BSD.shape),
        u_BSD.new_empty(batch, num_channels, state_size, dtype=dtype),
        u_BSD.new_empty(num_kept, batch, state_size, num_channels, dtype=dtype),
    )


def _backward(
    dy_BSD: torch.Tensor | None, dstate_BDN: torch.Tensor | None, inputs: ScanInputs, kept_KBND: torch.Tensor
) -> list[torch.Tensor]:
    with without_autocast(inputs.u_BSD):
        dy_BSD = inputs.u_BSD.new_zeros(inputs.u_BSD.shape) if dy_BSD is None else dy_BSD
        return list(backward_pass(inputs, kept_KBND, dy_BSD, dstate_BDN))


def _backward_shapes(inputs: ScanInputs, kept_KBND: torch.Tensor) -> list[torch.Tensor]:
    batch, state_size, num_channels = kept_KBND.shape[1:]
    return [kept_KBND.new_empty(shape) for shape in (*(x.shape for x in inputs[:5]), (batch, num_channels, state_size))]


# Loops over positions, which a compiler would write out one by one.
_scan = opaque(
    "selective_scan",
    _forward,
    _forward_shapes,
    _backward,
    _backward_shapes,
    returns=("y_BSD", "state_BDN", "kept_KBND"),
    gradients=(*ScanInputs._fields[:5], "initial_state"),
)
