"""Lays the bytes of rows out in patches of equal size, each document from a patch of its own.

Shapes: B batch, S bytes of a row, P bytes per patch, K patches of a row, U = K * P places of a row; `...` anything.
"""

from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError


def num_patches(length: int, patch_size: int) -> int:
    """Patches that `length` bytes fill, the last one perhaps in part.

    Raises:
        ConfigError: `patch_size` is not positive.

    >>> num_patches(17, patch_size=8)
    3
    """
    if patch_size < 1:
        raise ConfigError(f"patch_size must be an integer >= 1, got {patch_size}; 4 to 16 is usual")
    return -(-length // patch_size)


def to_patches(x: torch.Tensor, patch_size: int, fill: int | float = 0) -> torch.Tensor:
    """Rows (B, S, ...) cut into (B, K, P, ...); `fill` stands where the last patch has no byte.

    Raises:
        ConfigError: `patch_size` is not positive.
    """
    batch, length, *rest = x.shape
    count = num_patches(length, patch_size)
    if count * patch_size != length:
        x = _filled_up(x, count, patch_size, fill)
    return x.reshape(batch, count, patch_size, *rest)


def _filled_up(x: torch.Tensor, count: int, patch_size: int, fill: int | float) -> torch.Tensor:
    """(B, `count` * P, ...), `fill` behind the rows, of which less than a patch or a whole one is missing."""
    batch, _, *rest = x.shape
    # torch.export traces no piece whose own length depends on that of the rows, and no cut that may cut off nothing.
    return torch.cat([x, x.new_full((batch, patch_size + 1, *rest), fill)], dim=1)[:, : count * patch_size]


def from_patches(x: torch.Tensor, length: int) -> torch.Tensor:
    """Patches (B, K, P, ...) joined to rows (B, S, ...) of `length` bytes: the inverse of `to_patches`."""
    return x.flatten(1, 2)[:, :length]


def shift_right(x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Along axis 1 each entry stands one place later, `first` in front, and the last one is left out.

    What reads the entries up to its own place then knows only those before it.

    Args:
        x: (B, K, ...).
        first: (...), the same for all rows.
    """
    return torch.cat([first.to(x.dtype).expand_as(x[:, :1]), x], dim=1)[:, : x.shape[1]]


def last_of_patch_before(x: torch.Tensor, count: int, first: torch.Tensor | None = None) -> torch.Tensor:
    """The last `count` bytes of the patch before each, (B, K, `count`), out of (B, K, P).

    Args:
        x: bytes in patches.
        count: in [0, P].
        first: (B, `count`), what stands before the first patch; None leaves arbitrary bytes there.
    """
    last = x[..., x.shape[2] - count :]
    return torch.cat([last[:, :1] if first is None else first[:, None], last], dim=1)[:, : x.shape[1]]


class PatchLayout(NamedTuple):
    """Where the bytes of each row stand in patches, when every document begins a patch of its own.

    A document of n bytes takes n // P + 1 patches, so that the place behind its last byte exists, where the byte that
    would follow is predicted. Patches behind a row's documents are empty, and make up a document by themselves.

    `slot_BS` holds each byte's place in [0, U), and U at padding; None means that byte i stands at place i.
    `begins_BK` is True where a document begins; `position_BK` counts the patches of a document from 0; `real_BK` is
    False at empty patches.
    """

    num_patches: int
    slot_BS: torch.Tensor | None
    begins_BK: torch.Tensor
    position_BK: torch.Tensor
    real_BK: torch.Tensor


def patch_layout(
    patch_size: int,
    shape: tuple[int, int],
    device: torch.device | None = None,
    *,
    mask_BS: torch.Tensor | None = None,
    starts_BS: torch.Tensor | None = None,
) -> PatchLayout:
    """The layout of rows whose padding may stand anywhere: it takes no place, so that it moves no patch.

    Args:
        patch_size: P.
        shape: (B, S).
        device: of the mask and the starts, and of the layout.
        mask_BS: nonzero at real bytes; None means that all are.
        starts_BS: True at a byte that begins a document; a row's first byte always does. None means nowhere else.

    Raises:
        ConfigError: `patch_size` is not positive, or a mask or starts are given to torch.export.
    """
    batch, length = shape
    shortest = num_patches(length + 1, patch_size)
    if mask_BS is None and starts_BS is None:
        position_BK = torch.arange(shortest, device=device).expand(batch, shortest)
        return PatchLayout(shortest, None, position_BK == 0, position_BK, position_BK >= 0)
    if torch.compiler.is_exporting():
        raise ConfigError(
            f"MegaByte with {'an attention_mask' if starts_BS is None else 'position_ids or words for documents'} "
            "cannot be exported, since the number of patches then depends on their values; export it on input_ids "
            "alone, of any length"
        )
    real_BS = torch.ones(shape, dtype=torch.bool, device=device) if mask_BS is None else mask_BS != 0
    document_BS = torch.zeros_like(real_BS, dtype=torch.long) if starts_BS is None else starts_BS.long().cumsum(dim=1)
    # One column per document; those without a byte take no patch. (B, documents)
    documents = int(document_BS.max()) + 1 if document_BS.numel() else 1
    lengths = real_BS.new_zeros((batch, documents), dtype=torch.long).scatter_add(1, document_BS, real_BS.long())
    patches = torch.where(lengths > 0, lengths // patch_size + 1, 0)
    stop = patches.cumsum(dim=1)
    count = max(int(stop[:, -1].max()), 1) if batch else 1

    # A byte's place: that of its document's first patch, and its rank among the document's own real bytes.
    before = (lengths.cumsum(dim=1) - lengths).gather(1, document_BS)
    base = (stop - patches).gather(1, document_BS) * patch_size
    slot_BS = (base + real_BS.long().cumsum(dim=1) - 1 - before).masked_fill(~real_BS, count * patch_size)

    # Documents without a patch, and what lies behind the row's end, are marked in a column that is cut off.
    marks = torch.cat([(stop - patches).masked_fill(patches == 0, count), stop[:, -1:].clamp(max=count)], dim=1)
    begins_BK = real_BS.new_zeros((batch, count + 1)).scatter(1, marks, True)[:, :count]
    begins_BK[:, 0] = True
    patch_K = torch.arange(count, device=device)
    first_BK = torch.where(begins_BK, patch_K, 0).cummax(dim=1).values
    return PatchLayout(count, slot_BS, begins_BK, patch_K - first_BK, patch_K < stop[:, -1:])


def lay_out(x: torch.Tensor, patch_size: int, layout: PatchLayout, fill: int | float = 0) -> torch.Tensor:
    """Bytes (B, S) at their places in (B, K, P); `fill` where none stands."""
    if layout.slot_BS is None:
        grid_BU = _filled_up(x, layout.num_patches, patch_size, fill)
        return grid_BU.reshape(x.shape[0], layout.num_patches, patch_size)
    places = layout.num_patches * patch_size
    # Padding goes to a place of its own, which is cut off.
    grid_BU = x.new_full((x.shape[0], places + 1), fill).scatter(1, layout.slot_BS, x)
    return to_patches(grid_BU[:, :places], patch_size)


def pick_up(x: torch.Tensor, length: int, layout: PatchLayout, offset: int = 0) -> torch.Tensor:
    """What stands `offset` places behind each byte, (B, S, ...), out of (B, K, P, ...); arbitrary at padding.

    With offset 0 it is the inverse of `lay_out`; with 1 it reads the place where the next byte is predicted.
    """
    x_BU = x.flatten(1, 2)
    if layout.slot_BS is None:
        return x_BU[:, offset : offset + length]
    # Padding has the place behind the last one, which is out of bounds; what it reads means nothing.
    slot_BS = (layout.slot_BS + offset).clamp(max=x_BU.shape[1] - 1)
    row_B1 = torch.arange(slot_BS.shape[0], device=slot_BS.device)[:, None]
    return x_BU[row_B1, slot_BS]
