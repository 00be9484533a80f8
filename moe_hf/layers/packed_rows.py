"""Finds out where the documents of packed rows begin, and whether a mask hides anything.

Shapes: B batch, S positions.
"""

from typing import Any

import torch


def document_bounds(position_ids: torch.Tensor) -> dict[str, Any]:
    """The keyword arguments by which transformers' flash attention keeps documents apart.

    Given none, it looks at the positions itself, but only of a batch of one row.

    Args:
        position_ids: (B, S); a document begins with each row and wherever a position does not follow the one before.

    >>> document_bounds(torch.tensor([[0, 1, 0], [0, 1, 2]]))["cu_seq_lens_q"].tolist()
    [0, 2, 3, 6]
    """
    starts = _starts(position_ids).flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).to(torch.int32)
    # The longest document would have to be read back from the device; any bound on it will do.
    longest = position_ids.shape[-1]
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def document_starts(position_ids: torch.Tensor, batch: int) -> torch.Tensor | None:
    """(B, S), True where a document begins behind another one; None where that is seen to be nowhere.

    Args:
        position_ids: (B or 1, S); a document begins wherever a position does not follow the one before.
        batch: B.
    """
    starts_BS = _starts(position_ids)
    starts_BS[:, 0] = False
    if _can_look(starts_BS) and not starts_BS.any():
        return None
    return starts_BS.expand(batch, -1)


def positions_within_documents(bounds: torch.Tensor, length: int) -> torch.Tensor:
    """(1, S) positions that start again with each document.

    >>> positions_within_documents(torch.tensor([0, 3, 5]), 5).tolist()
    [[0, 1, 2, 0, 1]]
    """
    position_S = torch.arange(length, device=bounds.device)
    begun_S = bounds.to(position_S.dtype)[torch.searchsorted(bounds.to(position_S.dtype), position_S, right=True) - 1]
    return (position_S - begun_S)[None]


def none_if_all(mask_BS: torch.Tensor) -> torch.Tensor | None:
    """The mask, or None where it is seen to hide nothing, which takes the faster ways."""
    return None if _can_look(mask_BS) and bool(mask_BS.all()) else mask_BS


def _starts(position_ids: torch.Tensor) -> torch.Tensor:
    follows_BS = torch.zeros_like(position_ids, dtype=torch.bool)
    follows_BS[:, 1:] = position_ids.diff(dim=-1) == 1
    return ~follows_BS


def _can_look(tensor: torch.Tensor) -> bool:
    # Elsewhere the value would have to be waited for.
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
