"""The Triton twin of moe_hf.ops.routing.routing: softmax, the choice of k experts and their weights in one kernel.

Shapes: T tokens, E experts, K experts per token.
"""

# Triton's compiler types the parameters of kernels; Python's types cannot.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton  # noqa: TID251
import triton.language as tl  # noqa: TID251

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.triton.tiles import COMPILATION, INTERPRETED
from moe_hf.ops.operators import opaque
from moe_hf.ops.routing.routing import Routes

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_EXPERTS = 4096


def triton_top_k_routing(logits_TE: torch.Tensor, k: int, normalize: bool = True) -> Routes:
    """The k most probable experts of each token: `top_k_routing` on an NVIDIA GPU, differentiable.

    Experts are ranked by their logits, equal ones by their index, lower first; torch promises no order among equals.
    Probabilities are computed in float32. No second derivative.

    Args:
        logits_TE: raw scores; float32, bfloat16 or float16. -inf never wins against a number.
        k: experts per token, 1 <= k <= E.
        normalize: scale each token's k weights to sum to 1; else they are the probabilities themselves.

    Returns:
        weights in [0, 1], largest first, in the dtype of the logits, and the experts' indices, int64.

    Raises:
        ConfigError: k, a type, a device or a number of experts that the kernel does not have.
    """
    num_experts = logits_TE.shape[1]
    if not 1 <= k <= num_experts <= _MAX_EXPERTS:
        raise ConfigError(
            f"the Triton router takes 1 <= k <= E <= {_MAX_EXPERTS}, got k={k} and E={num_experts}; "
            "use top_k_routing for more experts"
        )
    if logits_TE.dtype not in _DTYPES or (logits_TE.device.type != "cuda" and not INTERPRETED):
        raise ConfigError(
            f"the Triton router takes float32, bfloat16 or float16 logits on an NVIDIA GPU, got {logits_TE.dtype} on "
            f"{logits_TE.device}; use top_k_routing there"
        )
    return Routes(*_route(logits_TE, k, normalize))


def _forward(logits_TE: torch.Tensor, k: int, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens, num_experts = logits_TE.shape
    weight_TK = logits_TE.new_empty(num_tokens, k)
    expert_TK = torch.empty(num_tokens, k, dtype=torch.int64, device=logits_TE.device)
    if num_tokens > 0:
        block_t, block_e = _blocks(num_experts)
        with torch.cuda.device_of(logits_TE):
            _route_kernel[(triton.cdiv(num_tokens, block_t),)](
                logits_TE,
                weight_TK,
                expert_TK,
                num_tokens,
                num_experts,
                *logits_TE.stride(),
                K=k,
                NORMALIZE=normalize,
                BLOCK_K=triton.next_power_of_2(k),
                BLOCK_T=block_t,
                BLOCK_E=block_e,
                **COMPILATION,
            )
    return weight_TK, expert_TK


def _forward_shapes(logits_TE: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight_TK = logits_TE.new_empty(logits_TE.shape[0], k)
    return weight_TK, torch.empty_like(weight_TK, dtype=torch.int64)


def _backward(
    dweight_TK: torch.Tensor, logits_TE: torch.Tensor, expert_TK: torch.Tensor, normalize: bool
) -> list[torch.Tensor]:
    num_tokens, num_experts = logits_TE.shape
    dlogits_TE = logits_TE.new_empty(num_tokens, num_experts)
    if num_tokens > 0:
        block_t, block_e = _blocks(num_experts)
        with torch.cuda.device_of(logits_TE):
            _route_backward_kernel[(triton.cdiv(num_tokens, block_t),)](
                dweight_TK.contiguous(),
                logits_TE,
                expert_TK,
                dlogits_TE,
                num_tokens,
                num_experts,
                *logits_TE.stride(),
                K=expert_TK.shape[1],
                NORMALIZE=normalize,
                BLOCK_T=block_t,
                BLOCK_E=block_e,
                **COMPILATION,
            )
    return [dlogits_TE]


def _backward_shapes(logits_TE: torch.Tensor) -> list[torch.Tensor]:
    return [logits_TE.new_empty(logits_TE.shape)]


_route = opaque(
    "triton_top_k_routing",
    _forward,
    _forward_shapes,
    _backward,
    _backward_shapes,
    returns=("weight_TK", "expert_TK"),
    gradients=("logits_TE",),
)


def _blocks(num_experts: int) -> tuple[int, int]:
    """Tokens per program and experts rounded up: some 2,048 numbers, so that a row stays in registers."""
    block_e = max(16, triton.next_power_of_2(num_experts))
    return max(1, (4096 if INTERPRETED else 2048) // block_e), block_e


@triton.jit
def _load_logits(logits_TE, row, e, num_experts, stride_lt, stride_le):
    pointer = logits_TE + row[:, None] * stride_lt + e[None, :] * stride_le
    return tl.load(pointer, mask=(e < num_experts)[None, :], other=float("-inf")).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens"])
def _route_kernel(
    logits_TE,
    weight_TK,
    expert_TK,
    num_tokens,
    num_experts,
    stride_lt,
    stride_le,
    K: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    # Rows behind the last token repeat it and store nothing: a row of -inf alone would make NaN.
    row = tl.minimum(token, num_tokens - 1).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    position = tl.arange(0, BLOCK_K)
    logits = _load_logits(logits_TE, row, e, num_experts, stride_lt, stride_le)
    largest = tl.max(logits, axis=1)
    mass = tl.exp(logits - largest[:, None])
    # One integer per expert that sorts by logit, then by index: floats sort like integers once the lower 31 bits of
    # negative ones are flipped, and -0 has been made 0.
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (bits.to(tl.int64) << 32) | (BLOCK_E - 1 - e).to(tl.int64)[None, :]
    none = tl.full([BLOCK_T, BLOCK_E], -0x7FFFFFFFFFFFFFFF, tl.int64)
    key = tl.where((e < num_experts)[None, :], key, none)
    weight = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    expert = tl.zeros([BLOCK_T, BLOCK_K], tl.int64)
    for k in tl.static_range(K):
        winner = BLOCK_E - 1 - (tl.max(key, axis=1) & 0xFFFFFFFF)
        is_winner = e[None, :] == winner[:, None]
        here = (position == k)[None, :]
        weight = tl.where(here, tl.sum(tl.where(is_winner, mass, 0.0), axis=1)[:, None], weight)
        expert = tl.where(here, winner[:, None], expert)
        key = tl.where(is_winner, none, key)
    # Masses are relative to the largest logit, which cancels in either quotient.
    total = tl.sum(weight, axis=1) if NORMALIZE else tl.sum(mass, axis=1)
    out = row[:, None] * K + position[None, :]
    live = (token < num_tokens)[:, None] & (position < K)[None, :]
    tl.store(weight_TK + out, (weight / total[:, None]).to(weight_TK.dtype.element_ty), mask=live)
    tl.store(expert_TK + out, expert, mask=live)


@triton.jit(do_not_specialize=["num_tokens"])
def _route_backward_kernel(
    dweight_TK,
    logits_TE,
    expert_TK,
    dlogits_TE,
    num_tokens,
    num_experts,
    stride_lt,
    stride_le,
    K: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    # Rows behind the last token repeat it and store nothing: a row of -inf alone would make NaN.
    row = tl.minimum(token, num_tokens - 1).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    logits = _load_logits(logits_TE, row, e, num_experts, stride_lt, stride_le)
    dprob = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    chosen = tl.zeros([BLOCK_T, BLOCK_E], tl.int1)
    for k in tl.static_range(K):
        expert = tl.load(expert_TK + row * K + k)
        gradient = tl.load(dweight_TK + row * K + k).to(tl.float32)
        here = e[None, :] == expert[:, None]
        dprob = tl.where(here, gradient[:, None], dprob)
        chosen = chosen | here
    # Renormalised weights are a softmax over the chosen alone, and differentiate as one.
    mass = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    if NORMALIZE:
        mass = tl.where(chosen, mass, 0.0)
    prob = mass / tl.sum(mass, axis=1)[:, None]
    dlogits = prob * (dprob - tl.sum(prob * dprob, axis=1)[:, None])
    live = (token < num_tokens)[:, None] & (e < num_experts)[None, :]
    out = dlogits_TE + row[:, None] * num_experts + e[None, :]
    tl.store(out, dlogits.to(dlogits_TE.dtype.element_ty), mask=live)
