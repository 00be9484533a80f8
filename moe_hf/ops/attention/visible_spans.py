"""Describes in a few numbers per token which keys each query sees, where documents are contiguous.

Shapes: B batch, S queries, N keys. Spans are (B, 1, 3, N) int32, in four dimensions so that transformers takes them for
a ready mask: [0, :S] the first key that a query sees, [1, :S] how many keys it sees, 0 for none, and [2] whether a key
is seen by any query. A query sees the seen keys from its first on, as many as it says: padding, packed documents and a
cache that is longer than what was written are all of that form.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from moe_hf.base.errors import ConfigError

# Rows of a mask looked at in one go.
_QUERIES_AT_ONCE = 256


class Document(NamedTuple):
    """Queries that see the same keys but for their own future: batch rows, their indices (q), and those of keys (n).

    The j-th query sees the first `count_q[j]` of the keys.
    """

    rows: slice
    query_q: torch.Tensor
    key_n: torch.Tensor
    count_q: torch.Tensor


def spans_of_mask(mask: torch.Tensor) -> torch.Tensor:
    """The spans (B, 1, 3, N) of a mask (B, 1, S, N), bool or float.

    Raises:
        ConfigError: the mask is not of the form that spans describe.
    """
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise ConfigError(f"the mask must be (B, 1, S, N), got {tuple(mask.shape)}; the heads must share it")
    if mask.dtype != torch.bool:
        mask = mask > torch.finfo(mask.dtype).min / 2
    batch, _, queries, keys = mask.shape
    return make_spans(lambda start, stop: mask[:, :, start:stop], batch, queries, keys, mask.device)


def make_spans(
    mask_of: Callable[[int, int], torch.Tensor], batch: int, queries: int, keys: int, device: torch.device | str
) -> torch.Tensor:
    """The spans (B, 1, 3, N) of a mask that is never whole.

    Args:
        mask_of: gives the rows of the mask (B, 1, rows, N), bool, from a query on and up to another.
        batch, queries, keys: the sizes of the whole mask.
        device: of the result.

    Raises:
        ConfigError: the mask is not of the form that spans describe; not checked while compiling.
    """
    spans = torch.zeros(batch, 1, 3, keys, dtype=torch.int32, device=device)
    edges = [*range(0, queries, _QUERIES_AT_ONCE), queries]
    for start, stop in pairwise(edges):
        # Bytes instead of truth values: torch reduces them several times as fast.
        visible = mask_of(start, stop).to(torch.uint8)
        # The first of the largest, so the first key that is seen.
        spans[:, :, 0, start:stop] = visible.argmax(dim=-1)
        spans[:, :, 1, start:stop] = visible.sum(dim=-1, dtype=torch.int32)
        spans[:, :, 2] |= visible.amax(dim=2)
    if torch.compiler.is_compiling():
        return spans
    # Checked against the mask, some rows at a time: another mask would silently become the nearest one of this form.
    rank = spans[:, :, 2].cumsum(dim=-1)
    for start, stop in pairwise(edges):
        first, count = spans[:, :, 0, start:stop, None], spans[:, :, 1, start:stop, None]
        before = rank.gather(-1, first[..., 0].long())[..., None] - 1
        described = (spans[:, :, 2:] > 0) & (rank[:, :, None] > before) & (rank[:, :, None] <= before + count)
        if not torch.equal(described.expand(batch, -1, -1, -1), mask_of(start, stop).expand(batch, -1, -1, -1)):
            raise ConfigError(
                "attention by blocks takes masks that show each query the keys of its document up to some point, "
                f"without gaps and for all heads alike, which this one does not for queries {start} to {stop - 1}; for "
                'other masks use attn_implementation="topk_sparse"'
            )
    return spans


def documents(spans: torch.Tensor, queries: int) -> Iterator[Document]:
    """The documents of a batch; queries that see nothing are in none."""
    # Rows without padding, or all padded alike, are computed as one.
    alike = bool((spans == spans[:1]).all())
    for row in range(1 if alike else len(spans)):
        first_S, count_S, seen_N = spans[row, 0, 0, :queries], spans[row, 0, 1, :queries], spans[row, 0, 2]
        for first in first_S[count_S > 0].unique().tolist():
            query_q = ((first_S == first) & (count_S > 0)).nonzero().flatten()
            count_q = count_S[query_q]
            key_n = seen_N[first:].nonzero().flatten()[: int(count_q.max())] + first
            yield Document(slice(0, len(spans)) if alike else slice(row, row + 1), query_q, key_n, count_q)
