"""The kernels of the experts' backward pass that the forward pass has no use for: no atomics, fixed order of addition.

Shapes: T tokens, K experts per token, N = T*K slots in the order of their experts, D width, E experts, F width of one
expert, U columns of its up projection (F, or 2F where gated), P and Q the sides of one expert's matrix, G tiles of
rows, J blocks of columns.
"""

# Triton's compiler types the parameters of kernels; Python's types cannot.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton  # noqa: TID251
import triton.language as tl  # noqa: TID251

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.triton.activations import activate_tile, activation_slope_tile
from moe_hf.ops.experts.triton.grouped_gemm import GROUP, ExpertRows, contiguous_axis, dot, gate_layout, program_tile
from moe_hf.ops.experts.triton.tiles import COMPILATION, INTERPRETED, GemmShape, Tiles, best_tiles, matmul_precision


def hidden_gradients(
    rows: ExpertRows,
    dout_TD: torch.Tensor,
    down_EDF: torch.Tensor,
    weight_TK: torch.Tensor,
    z_NU: torch.Tensor,
    activation: Activation,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What flows back into the hidden layer, rows in sorted order.

    Returns:
        the gradient for z, (N, U); the weighted h, (N, F), which the down projection's gradient needs; and, in slot
        order, the down projection's part of the routing weights' gradient in J summands, (N, J) float32.
    """
    num_experts, width, inner = down_EDF.shape
    gated, gate_step, value_column = gate_layout(activation, inner)
    dz_NU = torch.empty_like(z_NU)
    weighted_h_NF = z_NU.new_empty(rows.num_slots, inner)
    # J depends on the tiles, and timing tries several.
    parts: dict[int, torch.Tensor] = {}

    def launch(tiles: Tiles) -> None:
        tile_3G, num_tiles = rows.tile_map(tiles.block_m)
        num_columns = triton.cdiv(inner, tiles.block_n)
        if num_columns not in parts:
            parts[num_columns] = z_NU.new_empty(rows.num_slots, num_columns, dtype=torch.float32)
        _hidden_gradient_kernel[(num_tiles * num_columns,)](
            dout_TD,
            down_EDF,
            weight_TK,
            z_NU,
            dz_NU,
            weighted_h_NF,
            parts[num_columns],
            rows.slots.order_N,
            tile_3G,
            num_tiles,
            num_experts,
            width,
            inner,
            rows.slots_per_token,
            value_column,
            *dout_TD.stride(),
            *down_EDF.stride(),
            NAME=activation.name,
            GATED=gated,
            GATE_STEP=gate_step,
            EVEN=width % tiles.block_k == 0,
            PRECISION=matmul_precision(z_NU.dtype),
            UPCAST=INTERPRETED,
            GROUP=GROUP,
            **tiles.keywords(),
        )

    shape = GemmShape("hidden", rows.num_slots, num_experts, inner, width, 1, 2 + gated, contiguous_axis(down_EDF))
    tiles = tiles or best_tiles(shape, z_NU, launch)
    launch(tiles)
    return dz_NU, weighted_h_NF, parts[triton.cdiv(inner, tiles.block_n)]


def routing_weight_gradient(
    parts_NJ: torch.Tensor,
    dout_TD: torch.Tensor,
    expert_TK: torch.Tensor,
    down_bias_ED: torch.Tensor | None,
    num_experts: int,
    dweight_TK: torch.Tensor,
) -> None:
    """Fills `dweight_TK` with the parts' sums plus <dout, down bias>; 0 at skipped slots."""
    num_slots, num_columns = parts_NJ.shape
    # Any tensor will do where HAS_BIAS is False: nothing reads it.
    bias = parts_NJ if down_bias_ED is None else down_bias_ED
    block_n = 32 if INTERPRETED else 8
    _routing_weight_kernel[(triton.cdiv(num_slots, block_n),)](
        parts_NJ,
        dout_TD,
        expert_TK,
        bias,
        dweight_TK,
        num_slots,
        num_columns,
        num_experts,
        dout_TD.shape[1],
        expert_TK.shape[1],
        *dout_TD.stride(),
        *bias.stride(),
        HAS_BIAS=down_bias_ED is not None,
        BLOCK_N=block_n,
        BLOCK_J=16,
        BLOCK_D=128,
        **COMPILATION,
    )


def weight_gradient(
    rows: ExpertRows,
    p: torch.Tensor,
    q: torch.Tensor,
    gathered: str,
    dmatrix_EPQ: torch.Tensor,
    dbias_EP: torch.Tensor,
    weight_TK: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> None:
    """Fills a matrix' gradient with p^T q over each expert's rows, and its bias' with the sum of p's rows.

    Args:
        rows: the sorted slots.
        p: (N, P) in sorted order, or (T, P) where gathered.
        q: likewise.
        gathered: "p" or "q": the one whose rows are tokens.
        dmatrix_EPQ: to fill, any strides; empty to leave out.
        dbias_EP: likewise.
        weight_TK: counts p's rows in the bias gradient; None counts each once.
        tiles: block_m cuts P, block_n cuts Q, block_k cuts the rows.
    """
    p_width, q_width = p.shape[1], q.shape[1]
    has_matrix, has_bias = dmatrix_EPQ.numel() > 0, dbias_EP.numel() > 0
    matrix_strides = dmatrix_EPQ.stride() if has_matrix else (0, 0, 0)
    bias_strides = dbias_EP.stride() if has_bias else (0, 0)

    def launch(tiles: Tiles) -> None:
        num_p = triton.cdiv(p_width, tiles.block_m)
        num_q = triton.cdiv(q_width, tiles.block_n) if has_matrix else 1
        _weight_gradient_kernel[(rows.num_experts * num_p * num_q,)](
            p,
            q,
            p if weight_TK is None else weight_TK,
            dmatrix_EPQ,
            dbias_EP,
            rows.slots.order_N,
            rows.slots.offset_G,
            p_width,
            q_width,
            rows.slots_per_token,
            *p.stride(),
            *q.stride(),
            *matrix_strides,
            *bias_strides,
            GATHER_P=gathered == "p",
            HAS_MATRIX=has_matrix,
            HAS_BIAS=has_bias,
            WEIGHTED=weight_TK is not None,
            PRECISION=matmul_precision(p.dtype),
            UPCAST=INTERPRETED,
            GROUP=GROUP,
            **tiles.keywords(),
        )

    shape = GemmShape("weights", rows.num_slots, rows.num_experts, p_width, q_width, 1, 1, gathered)
    launch(tiles or best_tiles(shape, p, launch))


@triton.jit(do_not_specialize=["num_tiles"])
def _hidden_gradient_kernel(
    dout_TD,
    down_EDF,
    weight_N,
    z_NU,
    dz_NU,
    weighted_h_NF,
    parts_NJ,
    order_N,
    tile_3G,
    num_tiles,
    num_experts,
    width,
    inner,
    slots_per_token,
    value_column,
    stride_gt,
    stride_gd,
    stride_de,
    stride_dd,
    stride_df,
    NAME: tl.constexpr,
    GATED: tl.constexpr,
    GATE_STEP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    num_columns = (inner + BLOCK_N - 1) // BLOCK_N
    tile, column = program_tile(num_tiles, num_columns, GROUP)
    expert = tl.load(tile_3G + tile).to(tl.int64)
    # A surplus tile: the grid has room for the worst case, so that nobody waits for the counts.
    if expert >= num_experts:
        return
    first_row = tl.load(tile_3G + num_tiles + tile).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    live_row = row < tl.load(tile_3G + 2 * num_tiles + tile)
    # Dead rows read slot 0 and are not stored: cheaper than a mask in the loop.
    slot = tl.load(order_N + row, mask=live_row, other=0)
    token = (slot // slots_per_token).to(tl.int64)
    f = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live_f = f < inner
    d = tl.arange(0, BLOCK_K)
    dout_pointer = dout_TD + token[:, None] * stride_gt + d[None, :] * stride_gd
    down_pointer = down_EDF + expert * stride_de + d[:, None] * stride_dd + f.to(tl.int64)[None, :] * stride_df
    dy = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_K):
        if EVEN:
            dout = tl.load(dout_pointer)
            down = tl.load(down_pointer, mask=live_f[None, :], other=0.0)
        else:
            dout = tl.load(dout_pointer, mask=d[None, :] < width - start, other=0.0)
            down = tl.load(down_pointer, mask=live_f[None, :] & (d[:, None] < width - start), other=0.0)
        dy = dot(dout, down, dy, PRECISION, UPCAST)
        dout_pointer += BLOCK_K * stride_gd
        down_pointer += BLOCK_K * stride_dd
    live = live_row[:, None] & live_f[None, :]
    dtype = dz_NU.dtype.element_ty
    up_width = 2 * inner if GATED else inner
    # Offsets within the tile fit 32 bits, and half as many registers.
    index = tl.arange(0, BLOCK_M)[:, None]
    gate = index * up_width + f[None, :] * GATE_STEP
    z_NU += first_row * up_width
    dz_NU += first_row * up_width
    weight = tl.load(weight_N + slot).to(tl.float32)[:, None]
    z = tl.load(z_NU + gate, mask=live, other=0.0).to(tl.float32)
    h = activate_tile(z, NAME)
    if GATED:
        value = tl.load(z_NU + gate + value_column, mask=live, other=0.0).to(tl.float32)
        tl.store(dz_NU + gate + value_column, (dy * weight * h).to(dtype), mask=live)
        slope = activation_slope_tile(z, NAME) * value
        h *= value
    else:
        slope = activation_slope_tile(z, NAME)
    tl.store(dz_NU + gate, (dy * weight * slope).to(dtype), mask=live)
    # The forward pass multiplied what it had rounded to its type.
    h = h.to(dtype).to(tl.float32)
    weighted_h_NF += first_row * inner + f[None, :]
    tl.store(weighted_h_NF + index * inner, (h * weight).to(dtype), mask=live)
    # Dead columns are zero in h, and so add nothing.
    part = tl.sum(dy * h, axis=1)
    tl.store(parts_NJ + slot.to(tl.int64) * num_columns + column, part, mask=live_row)


@triton.jit(do_not_specialize=["num_slots"])
def _routing_weight_kernel(
    parts_NJ,
    dout_TD,
    expert_N,
    bias_ED,
    dweight_N,
    num_slots,
    num_columns,
    num_experts,
    width,
    slots_per_token,
    stride_gt,
    stride_gd,
    stride_be,
    stride_bd,
    HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(expert_N + slot, mask=slot < num_slots, other=num_experts).to(tl.int64)
    live = (expert < num_experts)[:, None]
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, num_columns, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        part = tl.load(
            parts_NJ + slot[:, None] * num_columns + j[None, :], mask=live & (j < num_columns)[None, :], other=0.0
        )
        total += tl.sum(part, axis=1)
    if HAS_BIAS:
        dout_row = dout_TD + (slot // slots_per_token)[:, None] * stride_gt
        bias_row = bias_ED + expert[:, None] * stride_be
        for start in range(0, width, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            mask = live & (d < width)[None, :]
            dout = tl.load(dout_row + d[None, :] * stride_gd, mask=mask, other=0.0).to(tl.float32)
            bias = tl.load(bias_row + d[None, :] * stride_bd, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(dout * bias, axis=1)
    tl.store(dweight_N + slot, total.to(dweight_N.dtype.element_ty), mask=slot < num_slots)


@triton.jit
def _weight_gradient_kernel(
    p_NP,
    q_NQ,
    weight_N,
    dmatrix_EPQ,
    dbias_EP,
    order_N,
    offset_G,
    p_width,
    q_width,
    slots_per_token,
    stride_pn,
    stride_pp,
    stride_qn,
    stride_qq,
    stride_me,
    stride_mp,
    stride_mq,
    stride_be,
    stride_bp,
    GATHER_P: tl.constexpr,
    HAS_MATRIX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    num_p = (p_width + BLOCK_M - 1) // BLOCK_M
    num_q = (q_width + BLOCK_N - 1) // BLOCK_N if HAS_MATRIX else 1
    program = tl.program_id(0)
    # Experts one after another, so that the rows of the one at work stay in L2.
    expert = (program // (num_p * num_q)).to(tl.int64)
    place = program % (num_p * num_q)
    first = place // (GROUP * num_q) * GROUP
    size = tl.minimum(num_p - first, GROUP)
    p_block = first + place % (GROUP * num_q) % size
    q_block = place % (GROUP * num_q) // size
    begin = tl.load(offset_G + expert)
    end = tl.load(offset_G + expert + 1)
    p = p_block * BLOCK_M + tl.arange(0, BLOCK_M)
    live_p = p < p_width
    p_column = p_NP + p.to(tl.int64)[:, None] * stride_pp
    if HAS_MATRIX:
        q = q_block * BLOCK_N + tl.arange(0, BLOCK_N)
        live_q = q < q_width
        q_column = q_NQ + q.to(tl.int64)[None, :] * stride_qq
        # An expert without rows skips the loop and stores these zeros, which are its gradient.
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(begin, end, BLOCK_K):
            row = start + tl.arange(0, BLOCK_K)
            live = row < end
            token = (tl.load(order_N + row, mask=live, other=0) // slots_per_token).to(tl.int64)
            p_row = token if GATHER_P else row.to(tl.int64)
            q_row = row.to(tl.int64) if GATHER_P else token
            p_tile = tl.load(p_column + p_row[None, :] * stride_pn, mask=live_p[:, None] & live[None, :], other=0.0)
            q_tile = tl.load(q_column + q_row[:, None] * stride_qn, mask=live[:, None] & live_q[None, :], other=0.0)
            total = dot(p_tile, q_tile, total, PRECISION, UPCAST)
        cell = p.to(tl.int64)[:, None] * stride_mp + q.to(tl.int64)[None, :] * stride_mq
        cell += expert * stride_me
        tl.store(dmatrix_EPQ + cell, total.to(dmatrix_EPQ.dtype.element_ty), mask=live_p[:, None] & live_q[None, :])
    if HAS_BIAS:
        # A loop of its own for one block of columns: a sum in the loop above would cost every program.
        if q_block == 0:
            bias = tl.zeros([BLOCK_M], tl.float32)
            for start in range(begin, end, BLOCK_K):
                row = start + tl.arange(0, BLOCK_K)
                live = row < end
                slot = tl.load(order_N + row, mask=live, other=0)
                p_row = (slot // slots_per_token).to(tl.int64) if GATHER_P else row.to(tl.int64)
                p_tile = tl.load(p_column + p_row[None, :] * stride_pn, mask=live_p[:, None] & live[None, :], other=0.0)
                p_tile = p_tile.to(tl.float32)
                if WEIGHTED:
                    p_tile *= tl.load(weight_N + slot, mask=live, other=0.0).to(tl.float32)[None, :]
                bias += tl.sum(p_tile, axis=1)
            tl.store(dbias_EP + expert * stride_be + p * stride_bp, bias.to(dbias_EP.dtype.element_ty), mask=live_p)
