"""Stacked weights in 8 or 4 bits: how they are stored, made of numbers, and turned into numbers again.

Shapes: E experts, O columns out of one expert, I columns into it, G groups of columns in, B blocks of 64 columns out.
"""

from typing import NamedTuple

import torch

from moe_hf.base.errors import CheckpointError, ConfigError

BITS = (8, 4)
"""Bits of a stored weight."""
GROUP_SIZES = (32, 64, 128)
"""How many neighbouring weights of a row may share a scale at 4 bits; those that PyTorch's product for CPUs knows."""

# PyTorch's 4-bit product reads the columns out in blocks of so many, on CPUs with AVX-512.
_BLOCK = 64
# The largest code at 8 bits, and the steps between the smallest and the largest at 4.
_LARGEST, _STEPS = 127, 15
# A code of 4 bits minus this is the multiple of its scale.
_MIDDLE = 8
# Which part of a group's range its 16 codes cover: what lies beyond is cut off, and the others lie closer.
_SHARES = (1.0, 0.92, 0.84, 0.76)


class QuantizedWeights(NamedTuple):
    """One projection of E experts in codes; the dtype of the codes tells their bits.

    int8: `codes_EOI`, and one scale for each row, `scales` (E, O): weight = code * scale.
    uint8: two 4-bit codes in a byte, and a scale and a zero for each group of a row, `scales` (E, G, O', 2): weight =
    (code - 8) * scale + zero. The codes are (E, B, I, 32): for each block of 64 columns out, and each column in, a
    byte holds those of the columns out n (low) and n + 32 (high). That is how PyTorch's product for CPUs with AVX-512
    reads them. O' is `rows` rounded up to whole blocks; what is added is zero.

    Scales are bfloat16, as those products want them; the codes are chosen with the rounded scales.

    Attributes:
        codes: of the experts.
        scales: of their rows, or of groups of their rows.
        rows: O.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    rows: int

    @property
    def bits(self) -> int:
        """Of a weight, 8 or 4."""
        return 8 if self.codes.dtype == torch.int8 else 4

    @property
    def columns(self) -> int:
        """I."""
        return self.codes.shape[2]

    @property
    def group_size(self) -> int | None:
        """How many weights of a row share a scale; None where all do."""
        return None if self.bits == 8 else self.columns // self.scales.shape[1]


def require_format(bits: int, group_size: int | None) -> None:
    """Refuse formats that do not exist.

    Raises:
        ConfigError: `bits` is neither 8 nor 4, or `group_size` is not one of `GROUP_SIZES` at 4 and None at 8.
    """
    if not isinstance(bits, int) or bits not in BITS:
        raise ConfigError(f"bits={bits!r} is not allowed; experts are stored in 8 or 4 bits")
    if bits == 8 and group_size is not None:
        raise ConfigError(f"group_size={group_size!r} has no meaning with bits=8, where each row has one scale")
    if bits == 4 and (not isinstance(group_size, int) or group_size not in GROUP_SIZES):
        raise ConfigError(f"group_size={group_size!r} is not allowed; it must be one of {GROUP_SIZES}")


def empty_weights(shape_EOI: torch.Size, bits: int, group_size: int | None, device: torch.device) -> QuantizedWeights:
    """Room for the codes and scales of a stack of this shape.

    Raises:
        ConfigError: a row is not made of whole groups, or the format does not exist.
    """
    require_format(bits, group_size)
    num_experts, rows, columns = shape_EOI
    if group_size is None:
        codes = torch.empty(num_experts, rows, columns, dtype=torch.int8, device=device)
        return QuantizedWeights(codes, torch.empty(num_experts, rows, dtype=torch.bfloat16, device=device), rows)
    if columns % group_size:
        fitting = [size for size in GROUP_SIZES if columns % size == 0]
        way_out = f"group_size={fitting[-1]} would do" if fitting else "use bits=8"
        raise ConfigError(f"rows of {columns} weights are no whole groups of group_size={group_size}; {way_out}")
    blocks = -(-rows // _BLOCK)
    codes = torch.empty(num_experts, blocks, columns, _BLOCK // 2, dtype=torch.uint8, device=device)
    scale_shape = (num_experts, columns // group_size, blocks * _BLOCK, 2)
    return QuantizedWeights(codes, torch.empty(scale_shape, dtype=torch.bfloat16, device=device), rows)


@torch.no_grad()
def quantized(weight_EOI: torch.Tensor, bits: int, group_size: int | None) -> QuantizedWeights:
    """The weights in codes, rounded to the nearest; of any strides and floating dtype, one expert at a time.

    At 8 bits the scale of a row puts its largest weight at 127. At 4 bits each group's range is covered whole or in
    part, whichever leaves the smaller squared error.

    Raises:
        ConfigError: as `empty_weights`.
        CheckpointError: a weight is NaN or infinite.
    """
    found = empty_weights(weight_EOI.shape, bits, group_size, weight_EOI.device)
    for expert, weight_OI in enumerate(weight_EOI):
        weight_OI = weight_OI.float()
        if not weight_OI.isfinite().all():
            raise CheckpointError(f"expert {expert} has weights that are NaN or infinite; they can't be quantised")
        if group_size is None:
            codes, scales = _in_8_bits(weight_OI)
        else:
            codes, scales = _in_4_bits(weight_OI, group_size, found.scales.shape[2])
        found.codes[expert], found.scales[expert] = codes, scales
    return found


def _in_8_bits(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest_O = weight_OI.abs().amax(dim=1)
    # A little more than half a step of bfloat16, so that rounding leaves no weight beyond the largest code.
    scale_O = (largest_O * (1 + 2**-8) / _LARGEST).bfloat16()
    # A scale of zero would divide by zero; of rows that are zero any other will do.
    scale_O = torch.where(scale_O == 0, torch.ones_like(scale_O), scale_O)
    codes_OI = (weight_OI / scale_O.float()[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return codes_OI.to(torch.int8), scale_O


def _in_4_bits(weight_OI: torch.Tensor, group_size: int, padded_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight_OI.shape
    scale_N1, zero_N1 = _scales_of_groups(weight_OI.reshape(-1, group_size))
    code_OI = _codes_of_groups(weight_OI.reshape(-1, group_size), scale_N1, zero_N1).add_(_MIDDLE).to(torch.uint8)
    code_OI = code_OI.view(rows, columns)
    scales_OG2 = torch.cat([scale_N1, zero_N1], dim=1).view(rows, columns // group_size, 2)
    added = padded_rows - rows
    code_OI = torch.cat([code_OI, code_OI.new_full((added, columns), _MIDDLE)])
    scales_OG2 = torch.cat([scales_OG2, scales_OG2.new_zeros(added, *scales_OG2.shape[1:])])
    code_BHI = code_OI.view(-1, 2, _BLOCK // 2, columns)
    return (code_BHI[:, 0] | (code_BHI[:, 1] << 4)).transpose(1, 2), scales_OG2.transpose(0, 1)


def _scales_of_groups(weight_NG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A scale and a zero for each group: of the shares of its range, those that leave the smallest squared error."""
    low_N1, high_N1 = weight_NG.aminmax(dim=1, keepdim=True)
    least_N1 = torch.full_like(low_N1, torch.inf)
    best_scale_N1, best_zero_N1 = torch.ones_like(low_N1).bfloat16(), torch.zeros_like(low_N1).bfloat16()
    for share in _SHARES:
        scale_N1 = (share * (high_N1 - low_N1) / _STEPS).bfloat16()
        # The 16 codes stand at -8 to 7, half a step below the middle of the range.
        zero_N1 = ((low_N1 + high_N1 + scale_N1.float()) / 2).bfloat16()
        # Of a group whose weights are equal any other scale will do.
        scale_N1 = torch.where(scale_N1 == 0, torch.ones_like(scale_N1), scale_N1)
        code_NG = _codes_of_groups(weight_NG, scale_N1, zero_N1)
        error_NG = code_NG.mul_(scale_N1.float()).add_(zero_N1.float()).sub_(weight_NG)
        error_N1 = error_NG.square_().sum(dim=1, keepdim=True)
        better_N1 = error_N1 < least_N1
        least_N1 = torch.where(better_N1, error_N1, least_N1)
        best_scale_N1 = torch.where(better_N1, scale_N1, best_scale_N1)
        best_zero_N1 = torch.where(better_N1, zero_N1, best_zero_N1)
    return best_scale_N1, best_zero_N1


def _codes_of_groups(weight_NG: torch.Tensor, scale_N1: torch.Tensor, zero_N1: torch.Tensor) -> torch.Tensor:
    """The nearest codes, from -8 to 7, as float32."""
    codes_NG = (weight_NG - zero_N1.float()).div_(scale_N1.float())
    return codes_NG.round_().clamp_(-_MIDDLE, _STEPS - _MIDDLE)


@torch.no_grad()
def dequantized(weights: QuantizedWeights, expert: int, dtype: torch.dtype) -> torch.Tensor:
    """One expert's weights as numbers, (O, I), rounded once to `dtype`; from 4 bits it is a transposed view."""
    codes, scales = weights.codes[expert], weights.scales[expert]
    # float16 has no number near the scales of very small weights.
    wide = torch.promote_types(dtype, torch.float32)
    if weights.bits == 8:
        return codes.to(wide).mul_(scales.to(wide)[:, None]).to(dtype)
    blocks, columns, half = codes.shape
    weight_IBO = torch.empty(columns, blocks, 2, half, dtype=wide, device=codes.device)
    weight_IBO[:, :, 0] = (codes & _STEPS).transpose(0, 1)
    weight_IBO[:, :, 1] = (codes >> 4).transpose(0, 1)
    num_groups, padded_rows, _ = scales.shape
    weight_GIO = weight_IBO.view(num_groups, columns // num_groups, padded_rows)
    scale_GO, zero_GO = scales.to(wide).unbind(dim=-1)
    weight_GIO.sub_(_MIDDLE).mul_(scale_GO[:, None]).add_(zero_GO[:, None])
    return weight_GIO.view(columns, padded_rows)[:, : weights.rows].to(dtype).t()
