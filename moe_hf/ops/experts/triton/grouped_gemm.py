"""The grouped GEMMs of the forward pass: each expert's rows times its matrix, rows gathered and scattered in the tile.

Shapes: T tokens, K experts per token, N = T*K slots in the order of their experts, D width, E experts, F width of one
expert, U columns of its up projection (F, or 2F where gated), G tiles of rows.
"""

# Triton's compiler types the parameters of kernels; Python's types cannot.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton  # noqa: TID251
import triton.language as tl  # noqa: TID251

from moe_hf.ops.experts.activations import Activation
from moe_hf.ops.experts.triton.activations import activate_tile
from moe_hf.ops.experts.triton.sorting import SortedSlots, TileMap, tile_map
from moe_hf.ops.experts.triton.tiles import COMPILATION, INTERPRETED, GemmShape, Tiles, best_tiles, matmul_precision

# So many tiles of rows take turns on one block of columns before the next: their weights then stay in L2.
GROUP = 8


class ExpertRows:
    """The slots of one call, sorted by expert, and the tile maps that its GEMMs ask for."""

    def __init__(self, slots: SortedSlots, slots_per_token: int) -> None:
        self.slots = slots
        self.slots_per_token = slots_per_token
        self._maps: dict[int, TileMap] = {}

    @property
    def num_slots(self) -> int:
        """N, skipped slots included."""
        return self.slots.order_N.numel()

    @property
    def num_experts(self) -> int:
        """E."""
        return self.slots.count_E.numel()

    def tile_map(self, block_m: int) -> TileMap:
        """The map for tiles of `block_m` rows, made at the first call."""
        if block_m not in self._maps:
            self._maps[block_m] = tile_map(self.slots, block_m)
        return self._maps[block_m]


def gate_layout(activation: Activation, inner: int) -> tuple[bool, int, int]:
    """Whether there is a gate, the step from one gate column to the next, and how far its value column is behind it."""
    return (
        activation.gate != "none",
        2 if activation.gate == "interleaved" else 1,
        1 if activation.gate == "interleaved" else inner,
    )


def up_gemm(
    rows: ExpertRows,
    x_TD: torch.Tensor,
    up_EUD: torch.Tensor,
    up_bias_EU: torch.Tensor | None,
    activation: Activation,
    keep_z: bool,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The activated up projections h_NF and, where `keep_z`, what was activated, z_NU (else an empty tensor)."""
    num_experts, up_width, width = up_EUD.shape
    inner = up_width if activation.gate == "none" else up_width // 2
    gated, gate_step, value_column = gate_layout(activation, inner)
    z_NU = x_TD.new_empty(rows.num_slots if keep_z else 0, up_width)
    h_NF = x_TD.new_empty(rows.num_slots, inner)
    # Any tensor will do where HAS_BIAS is False: nothing reads it.
    bias = up_EUD if up_bias_EU is None else up_bias_EU

    def launch(tiles: Tiles) -> None:
        tile_3G, num_tiles = rows.tile_map(tiles.block_m)
        _up_kernel[(num_tiles * triton.cdiv(inner, tiles.block_n),)](
            x_TD,
            up_EUD,
            bias,
            z_NU,
            h_NF,
            rows.slots.order_N,
            tile_3G,
            num_tiles,
            num_experts,
            width,
            inner,
            rows.slots_per_token,
            value_column,
            *x_TD.stride(),
            *up_EUD.stride(),
            *bias.stride()[:2],
            NAME=activation.name,
            GATED=gated,
            GATE_STEP=gate_step,
            HAS_BIAS=up_bias_EU is not None,
            KEEP_Z=keep_z,
            EVEN=width % tiles.block_k == 0,
            PRECISION=matmul_precision(x_TD.dtype),
            UPCAST=INTERPRETED,
            GROUP=GROUP,
            **tiles.keywords(),
        )

    shape = GemmShape("up", rows.num_slots, num_experts, inner, width, 1 + gated, 1 + gated, contiguous_axis(up_EUD))
    launch(tiles or best_tiles(shape, x_TD, launch))
    return z_NU, h_NF


def rows_gemm(
    rows: ExpertRows,
    a_NC: torch.Tensor,
    matrix_ECD: torch.Tensor,
    bias_ED: torch.Tensor | None,
    weight_TK: torch.Tensor | None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """Sorted rows times their expert's (C, D) matrix, plus bias, times the slot's weight, scattered to slot order.

    Rows of skipped slots stay uninitialised.
    """
    num_experts, depth, width = matrix_ECD.shape
    out_ND = a_NC.new_empty(rows.num_slots, width)
    bias = matrix_ECD if bias_ED is None else bias_ED

    def launch(tiles: Tiles) -> None:
        tile_3G, num_tiles = rows.tile_map(tiles.block_m)
        _rows_kernel[(num_tiles * triton.cdiv(width, tiles.block_n),)](
            a_NC,
            matrix_ECD,
            bias,
            a_NC if weight_TK is None else weight_TK,
            out_ND,
            rows.slots.order_N,
            tile_3G,
            num_tiles,
            num_experts,
            width,
            depth,
            *matrix_ECD.stride(),
            *bias.stride()[:2],
            HAS_BIAS=bias_ED is not None,
            WEIGHTED=weight_TK is not None,
            EVEN=depth % tiles.block_k == 0,
            PRECISION=matmul_precision(a_NC.dtype),
            UPCAST=INTERPRETED,
            GROUP=GROUP,
            **tiles.keywords(),
        )

    shape = GemmShape("rows", rows.num_slots, num_experts, width, depth, 1, 1, contiguous_axis(matrix_ECD))
    launch(tiles or best_tiles(shape, a_NC, launch))
    return out_ND


def combine_slots(y_ND: torch.Tensor, expert_TK: torch.Tensor, num_experts: int, out_TD: torch.Tensor) -> None:
    """Fills `out_TD`, contiguous, with each token's K rows added up in their order, skipped slots left out."""
    num_tokens, slots_per_token = expert_TK.shape
    width = y_ND.shape[1]
    block_d = min(256, triton.next_power_of_2(width))
    block_t = 32 if INTERPRETED else 4
    _combine_kernel[(triton.cdiv(num_tokens, block_t), triton.cdiv(width, block_d))](
        y_ND,
        expert_TK,
        out_TD,
        num_tokens,
        num_experts,
        width,
        slots_per_token,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        **COMPILATION,
    )


def contiguous_axis(matrix: torch.Tensor) -> str:
    """Which of the last two axes has neighbours in memory, for the choice of tiles."""
    return "last" if matrix.stride(-1) == 1 else "first" if matrix.stride(-2) == 1 else "none"


@triton.jit
def program_tile(num_tiles, num_columns, GROUP: tl.constexpr):
    """(tile of rows, block of columns) of this program, so that neighbours share rows or weights in L2."""
    program = tl.program_id(0)
    width = GROUP * num_columns
    first = program // width * GROUP
    size = tl.minimum(num_tiles - first, GROUP)
    return first + program % width % size, program % width // size


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + a @ b in float32; UPCAST because the interpreter's own product of bfloat16 tiles is wrong."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


# The number of tiles changes with the batch, and must not make Triton compile anew where it is divisible by 16.
@triton.jit(do_not_specialize=["num_tiles"])
def _up_kernel(
    x_TD,
    up_EUD,
    bias_EU,
    z_NU,
    h_NF,
    order_N,
    tile_3G,
    num_tiles,
    num_experts,
    width,
    inner,
    slots_per_token,
    value_column,
    stride_xt,
    stride_xd,
    stride_ue,
    stride_uu,
    stride_ud,
    stride_be,
    stride_bu,
    NAME: tl.constexpr,
    GATED: tl.constexpr,
    GATE_STEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_Z: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile, column = program_tile(num_tiles, (inner + BLOCK_N - 1) // BLOCK_N, GROUP)
    expert = tl.load(tile_3G + tile).to(tl.int64)
    # A surplus tile: the grid has room for the worst case, so that nobody waits for the counts.
    if expert >= num_experts:
        return
    first_row = tl.load(tile_3G + num_tiles + tile).to(tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    live_row = row < tl.load(tile_3G + 2 * num_tiles + tile)
    # Dead rows read token 0 and are not stored: cheaper than a mask in the loop.
    token = (tl.load(order_N + row, mask=live_row, other=0) // slots_per_token).to(tl.int64)
    f = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live_f = f < inner
    gate = f.to(tl.int64) * GATE_STEP
    d = tl.arange(0, BLOCK_K)
    x_pointer = x_TD + token[:, None] * stride_xt + d[None, :] * stride_xd
    up_pointer = up_EUD + expert * stride_ue + gate[None, :] * stride_uu + d[:, None] * stride_ud
    value_pointer = up_EUD + expert * stride_ue + (gate + value_column)[None, :] * stride_uu + d[:, None] * stride_ud
    z = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_K):
        if EVEN:
            x = tl.load(x_pointer)
            live = live_f[None, :]
        else:
            x = tl.load(x_pointer, mask=d[None, :] < width - start, other=0.0)
            live = live_f[None, :] & (d[:, None] < width - start)
        z = dot(x, tl.load(up_pointer, mask=live, other=0.0), z, PRECISION, UPCAST)
        if GATED:
            value = dot(x, tl.load(value_pointer, mask=live, other=0.0), value, PRECISION, UPCAST)
            value_pointer += BLOCK_K * stride_ud
        x_pointer += BLOCK_K * stride_xd
        up_pointer += BLOCK_K * stride_ud
    bias_pointer = bias_EU + expert * stride_be + gate * stride_bu
    if HAS_BIAS:
        z += tl.load(bias_pointer, mask=live_f, other=0.0).to(tl.float32)[None, :]
    # What is stored is what is activated, so that the backward pass finds the very h that went on.
    z = z.to(h_NF.dtype.element_ty)
    h = activate_tile(z.to(tl.float32), NAME)
    live = live_row[:, None] & live_f[None, :]
    # Offsets within the tile fit 32 bits, and half as many registers.
    index = tl.arange(0, BLOCK_M)[:, None]
    up_width = 2 * inner if GATED else inner
    z_pointer = z_NU + first_row * up_width + (index * up_width + f[None, :] * GATE_STEP)
    if KEEP_Z:
        tl.store(z_pointer, z, mask=live)
    if GATED:
        if HAS_BIAS:
            value += tl.load(bias_pointer + value_column * stride_bu, mask=live_f, other=0.0).to(tl.float32)[None, :]
        value = value.to(h_NF.dtype.element_ty)
        h = h * value.to(tl.float32)
        if KEEP_Z:
            tl.store(z_pointer + value_column, value, mask=live)
    tl.store(h_NF + first_row * inner + (index * inner + f[None, :]), h.to(h_NF.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["num_tiles"])
def _rows_kernel(
    a_NC,
    matrix_ECD,
    bias_ED,
    weight_N,
    out_ND,
    order_N,
    tile_3G,
    num_tiles,
    num_experts,
    width,
    depth,
    stride_me,
    stride_mc,
    stride_md,
    stride_be,
    stride_bd,
    HAS_BIAS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile, column = program_tile(num_tiles, (width + BLOCK_N - 1) // BLOCK_N, GROUP)
    expert = tl.load(tile_3G + tile).to(tl.int64)
    if expert >= num_experts:
        return
    row = tl.load(tile_3G + num_tiles + tile) + tl.arange(0, BLOCK_M)
    live_row = row < tl.load(tile_3G + 2 * num_tiles + tile)
    # Dead rows read row 0 and are not stored.
    row = tl.where(live_row, row, 0)
    slot = tl.load(order_N + row)
    d = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live_d = d < width
    c = tl.arange(0, BLOCK_K)
    a_pointer = a_NC + row.to(tl.int64)[:, None] * depth + c[None, :]
    matrix_pointer = matrix_ECD + expert * stride_me + c[:, None] * stride_mc + d.to(tl.int64)[None, :] * stride_md
    out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, depth, BLOCK_K):
        if EVEN:
            a = tl.load(a_pointer)
            matrix = tl.load(matrix_pointer, mask=live_d[None, :], other=0.0)
        else:
            a = tl.load(a_pointer, mask=c[None, :] < depth - start, other=0.0)
            matrix = tl.load(matrix_pointer, mask=live_d[None, :] & (c[:, None] < depth - start), other=0.0)
        out = dot(a, matrix, out, PRECISION, UPCAST)
        a_pointer += BLOCK_K
        matrix_pointer += BLOCK_K * stride_mc
    if HAS_BIAS:
        bias = tl.load(bias_ED + expert * stride_be + d * stride_bd, mask=live_d, other=0.0)
        out += bias.to(tl.float32)[None, :]
    # In float32, before the sum is rounded: one rounding, not two.
    if WEIGHTED:
        out *= tl.load(weight_N + slot).to(tl.float32)[:, None]
    out_pointer = out_ND + slot.to(tl.int64)[:, None] * width + d[None, :]
    tl.store(out_pointer, out.to(out_ND.dtype.element_ty), mask=live_row[:, None] & live_d[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _combine_kernel(
    y_ND,
    expert_TK,
    out_TD,
    num_tokens,
    num_experts,
    width,
    slots_per_token,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    # Each token fetches its own rows, so that no two programs add to one place: no atomics, and always the same order.
    for position in range(0, slots_per_token):
        slot = token * slots_per_token + position
        expert = tl.load(expert_TK + slot, mask=token < num_tokens, other=num_experts)
        # Rows of skipped slots were never written, and may hold NaN.
        live = (expert < num_experts)[:, None] & (d < width)[None, :]
        total += tl.load(y_ND + slot[:, None] * width + d[None, :], mask=live, other=0.0).to(tl.float32)
    live = (token < num_tokens)[:, None] & (d < width)[None, :]
    tl.store(out_TD + token[:, None] * width + d[None, :], total.to(out_TD.dtype.element_ty), mask=live)
