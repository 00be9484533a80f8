"""Tells flash kernels, which take no mask, where the documents of packed rows begin.

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
    follows_BS = torch.zeros_like(position_ids, dtype=torch.bool)
    follows_BS[:, 1:] = position_ids.diff(dim=-1) == 1
    starts = (~follows_BS).flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).to(torch.int32)
    # The longest document would have to be read back from the device; any bound on it will do.
    longest = position_ids.shape[-1]
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
