"""Moves the real tokens of padded rows to the front and back, so that what looks at neighbours never sees padding.

Shapes: B batch, S positions, D width.
"""

from typing import NamedTuple

import torch


class Compaction(NamedTuple):
    """Where each token of padded rows stands once the real ones come first, in their order.

    `order_BS` lists the positions, real ones first; `place_BS` is its inverse; `count_B` counts the real tokens.
    """

    order_BS: torch.Tensor
    place_BS: torch.Tensor
    count_B: torch.Tensor

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """The entries of `x`, (B, S) or (B, S, D), real ones first; what follows them in a row is its padding."""
        return _take(x, self.order_BS)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """What `pack` gave, back in its place."""
        return _take(x, self.place_BS)


def compaction(mask_BS: torch.Tensor) -> Compaction:
    """How to move the tokens where `mask_BS` is nonzero to the front of their rows.

    >>> compaction(torch.tensor([[0, 1, 0, 1]])).order_BS.tolist()
    [[1, 3, 0, 2]]
    """
    real_BS = mask_BS != 0
    order_BS = torch.argsort((~real_BS).to(torch.uint8), dim=1, stable=True)
    return Compaction(order_BS, torch.argsort(order_BS, dim=1), real_BS.sum(dim=1))


def _take(x: torch.Tensor, index_BS: torch.Tensor) -> torch.Tensor:
    if x.ndim == 2:
        return x.gather(1, index_BS)
    return x.gather(1, index_BS[..., None].expand(-1, -1, x.shape[-1]))
