"""Finds the k largest scores of each row, and multiplies by the matrix of weights that they make.

Shapes: Z key heads (batch times groups of query heads), R rows (queries of one head after the other, the same number
for each key head), N keys, C head width, K kept keys per row.

Weights come in two forms. Sparse: (R, K) beside the indices of the keys. Dense: (R, N), zero where a key was dropped,
and None in place of the indices; the faster form where K is not much smaller than N.
"""

import torch
from torch.nn import functional as F

from moe_hf.base.errors import ConfigError

# From this share of the keys on, matrix products over all keys beat gathering those that were kept.
_DENSE_SHARE = 1 / 8
# A maximum over this many scores stands for them in the first round.
_GROUP = 8
# Up to so many queries per head, keys times queries is the faster order of the product.
_FEW_QUERIES = 16
# Kept keys gathered at once by `kept_products`: they stay in a core's cache.
_PAIRS_AT_ONCE = 1 << 14


def require_top_k(top_k: int | float) -> None:
    """Do nothing where so many keys or blocks can be kept.

    Raises:
        ConfigError: it is neither an integer >= 1 nor a fraction in (0, 1).
    """
    if isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1:
        return
    if isinstance(top_k, float) and 0 < top_k < 1:
        return
    raise ConfigError(
        f"top_k must be an integer >= 1 or a fraction in (0, 1), got {top_k!r}; to keep all, which a fraction of 1.0 "
        "would mean, give an integer at least as large as their number, or use dense attention"
    )


def products(query_ZRC: torch.Tensor, key_ZNC: torch.Tensor) -> torch.Tensor:
    """Each query's dot products with the keys of its head, (Z, R, N), contiguous; R here counts those of one head."""
    if query_ZRC.shape[1] > _FEW_QUERIES:
        return query_ZRC @ key_ZNC.transpose(1, 2)
    return (key_ZNC @ query_ZRC.transpose(1, 2)).transpose(1, 2).contiguous()


def largest(score_RN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest scores of each row, largest first, and where they stand, both (R, K); torch.topk, sooner.

    A group of scores can hold one of the k largest only if its maximum is among the k largest maxima, and maxima over
    columns are cheap.
    """
    rows, width = score_RN.shape
    groups = width // _GROUP
    if groups < 2 * k or score_RN.device.type != "cpu":
        values_RK, index_RK = score_RN.topk(k, dim=-1)
        return values_RK, index_RK
    whole = groups * _GROUP
    # Members of a group stand `groups` columns apart, so that the maxima run along contiguous memory.
    maxima = score_RN[:, :whole].view(rows, _GROUP, groups).amax(dim=1)
    chosen = maxima.topk(k, dim=-1, sorted=False).indices
    member = torch.arange(0, whole, groups)[:, None]
    candidates = (chosen[:, None, :] + member).flatten(1)
    if whole < width:
        candidates = torch.cat([candidates, torch.arange(whole, width).expand(rows, -1)], dim=1)
    values_RK, place_RK = score_RN.gather(1, candidates).topk(k, dim=-1)
    return values_RK, candidates.gather(1, place_RK)


def keep_largest(score_RN: torch.Tensor, top_k: int | float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The kept scores, in the sparse or the dense form; what is not kept is absent or minus infinity.

    Args:
        score_RN: minus infinity where a row does not see a key.
        top_k: how many a row keeps, or a fraction in (0, 1) of the keys that it sees, rounded up.
    """
    width = score_RN.shape[-1]
    # Of a fraction, enough for rows that see all keys; the others keep less of it below.
    k = top_k if isinstance(top_k, int) else min(width, int(top_k * width) + 1)
    if k >= width and isinstance(top_k, int):
        return score_RN, None
    kept_RK, index_RK = largest(score_RN, min(k, width))
    if not isinstance(top_k, int):
        seen_R = (score_RN > -torch.inf).sum(dim=-1, keepdim=True)
        rank = torch.arange(kept_RK.shape[-1], device=score_RN.device)
        # A little less, so that 0.1 of 30 keys stay 3 in floating point.
        share_R = (seen_R.double() * top_k - 1e-6).ceil().clamp(min=1)
        kept_RK = kept_RK.masked_fill(rank >= share_R, -torch.inf)
    if kept_RK.shape[-1] < width * _DENSE_SHARE:
        return kept_RK, index_RK
    return torch.full_like(score_RN, -torch.inf).scatter_(1, index_RK, kept_RK), None


def weighted_keys(weight: torch.Tensor, index: torch.Tensor | None, x_ZNC: torch.Tensor) -> torch.Tensor:
    """The weights times what belongs to the keys: (R, C)."""
    if index is None:
        heads, width, channels = x_ZNC.shape
        return (weight.view(heads, -1, width) @ x_ZNC).view(-1, channels)
    return F.embedding_bag(_flat(index, x_ZNC), x_ZNC.flatten(0, 1), per_sample_weights=weight, mode="sum")


def kept_products(rows_RC: torch.Tensor, index: torch.Tensor | None, x_ZNC: torch.Tensor) -> torch.Tensor:
    """Each row's dot products with what belongs to its kept keys, in the form of the weights."""
    heads, width, channels = x_ZNC.shape
    if index is None:
        return (rows_RC.view(heads, -1, channels) @ x_ZNC.transpose(1, 2)).view(-1, width)
    x_MC, flat_RK = x_ZNC.flatten(0, 1), _flat(index, x_ZNC)
    step = max(1, _PAIRS_AT_ONCE // flat_RK.shape[-1])
    products_RK = rows_RC.new_empty(flat_RK.shape)
    for start in range(0, flat_RK.shape[0], step):
        part = slice(start, start + step)
        # The row times a matrix: torch multiplies a matrix by the row many times more slowly.
        products_RK[part] = (rows_RC[part, None] @ x_MC[flat_RK[part]].transpose(1, 2))[:, 0]
    return products_RK


def add_weighted_rows(
    out_ZNC: torch.Tensor, weight: torch.Tensor, index: torch.Tensor | None, rows_RC: torch.Tensor
) -> None:
    """Adds to `out_ZNC`, in place, the transposed weights times the rows."""
    heads, width, channels = out_ZNC.shape
    if index is None:
        weight_ZRN = weight.view(heads, -1, width)
        out_ZNC += weight_ZRN.transpose(1, 2) @ rows_RC.view(heads, -1, channels)
        return
    kept = weight.shape[-1]
    flat, order = _flat(index, out_ZNC).flatten().sort()
    keys = torch.arange(heads * width, device=flat.device)
    # One bag per key: the rows that kept it. Adding row after row to scattered places takes several times as long.
    out_ZNC += F.embedding_bag(
        order // kept,
        rows_RC,
        offsets=torch.searchsorted(flat, keys),
        per_sample_weights=weight.flatten()[order],
        mode="sum",
    ).view_as(out_ZNC)


def _flat(index_RK: torch.Tensor, x_ZNC: torch.Tensor) -> torch.Tensor:
    # Indices into the keys of all heads laid end to end.
    heads, width, _ = x_ZNC.shape
    base_Z = torch.arange(0, heads * width, width, device=index_RK.device)
    return index_RK + base_Z.repeat_interleave(index_RK.shape[0] // heads)[:, None]
