"""Finds out where the documents of packed rows begin, and whether a mask hides anything.

Shapes: B batch, S positions.
"""

from typing import Any

import torch

from moe_hf.base.errors import ConfigError

# What other models' collators call the documents of packed rows.
_BOUNDS, _NUMBERS = ("cu_seq_lens_q", "cu_seqlens"), "seq_idx"


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
    # A row's own beginning needs no mark: the state is empty there, or goes on from a cache.
    starts_BS[:, 0] = False
    if _can_look(starts_BS) and not starts_BS.any():
        return None
    return starts_BS.expand(batch, -1)


def positions_from(given: dict[str, Any], position_ids: torch.Tensor | None, shape: tuple[int, int]) -> Any:
    """(B, S) positions that start again where keyword arguments say that documents begin; else `position_ids`.

    Args:
        given: may hold `seq_idx`, (B, S) numbers of documents, or `cu_seqlens` or `cu_seq_lens_q`, the places where
            documents begin in the rows laid one behind the other, and their end.
        position_ids: (B or 1, S) or None.
        shape: B and S.

    Raises:
        ConfigError: they do not fit the rows, or contradict each other.
    """
    if given.get("cache") is not None:
        return position_ids
    for name in (*_BOUNDS, _NUMBERS):
        if given.get(name) is None:
            continue
        told = _positions_by_number(given[name], shape) if name == _NUMBERS else _positions(given[name], name, shape)
        if position_ids is None:
            position_ids = told
        elif not torch.compiler.is_compiling() and not torch.equal(_inner(told), _inner(position_ids).expand(shape)):
            raise ConfigError(
                f"{name} and position_ids (or another name for documents) begin documents at different places; give "
                "one of them, or positions that start again with each document"
            )
    return position_ids


def _inner(position_ids: torch.Tensor) -> torch.Tensor:
    starts_BS = _starts(position_ids)
    starts_BS[:, 0] = True
    return starts_BS


def _positions_by_number(number_BS: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    if tuple(number_BS.shape) not in (shape, (1, shape[1])):
        raise ConfigError(
            f"seq_idx of shape {tuple(number_BS.shape)} is not allowed; it must be {shape}, as the ids are"
        )
    starts_BS = torch.ones_like(number_BS, dtype=torch.bool)
    starts_BS[:, 1:] = number_BS.diff(dim=-1) != 0
    place_S = torch.arange(shape[1], device=number_BS.device)
    return (place_S - (place_S * starts_BS).cummax(dim=-1).values).expand(shape)


def _positions(bounds: torch.Tensor, name: str, shape: tuple[int, int]) -> torch.Tensor:
    batch, length = shape
    if not torch.compiler.is_compiling():
        found = bounds.tolist()
        rows = set(range(0, batch * length + 1, length))
        if found != sorted(found) or found[:1] != [0] or not rows <= set(found):
            raise ConfigError(
                f"{name}={found} is not allowed for {batch} rows of {length}; it must rise from 0 to {batch * length} "
                "and hold the beginning of every row"
            )
    return positions_within_documents(bounds, batch * length).view(shape)


def is_plain(mask: Any) -> bool:
    """Whether a mask is absent, or says no more than which tokens are real."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2)


def hides_nothing(mask: Any) -> bool:
    """Whether a plain mask is all ones; worth waiting for on any device, lest documents run into each other."""
    return mask is not None and is_plain(mask) and not torch.compiler.is_compiling() and bool(mask.all())


def starts_unless_hindered(
    position_ids: torch.Tensor | None, batch: int, mask: torch.Tensor | None, hindrance: str | None
) -> torch.Tensor | None:
    """`document_starts`, or None without positions.

    Raises:
        ConfigError: documents begin, beside a mask or another hindrance.
    """
    if position_ids is None:
        return None
    if mask is None and hindrance is None:
        return document_starts(position_ids, batch)
    require_no_restart(position_ids, mask, hindrance or "an attention_mask that hides something")
    return None


def require_no_restart(position_ids: torch.Tensor, mask: torch.Tensor | None, why: str) -> None:
    """Refuse documents where they cannot be kept apart.

    Args:
        position_ids: (B or 1, S).
        mask: (B, past + S), nonzero at real tokens, or None.
        why: what stands in the way.

    Raises:
        ConfigError: the position of a real token does not come after those of the real tokens before it.
    """
    if torch.compiler.is_compiling() or position_ids.shape[-1] < 2:
        return
    place_BS = position_ids
    if mask is not None:
        # The positions of padding are arbitrary: they must neither look like a restart nor hide one.
        place_BS = position_ids.masked_fill(mask[:, -position_ids.shape[-1] :] == 0, -1)
    highest_BS = place_BS.cummax(dim=-1).values[:, :-1]
    if bool(((place_BS[:, 1:] >= 0) & (place_BS[:, 1:] <= highest_BS)).any()):
        raise ConfigError(
            f"position_ids that start again, as those of packed documents, are not allowed together with {why}; leave "
            "that out, or give each document a row"
        )


def require_unbroken(mask: Any, window: int) -> None:
    """Refuse padding between real tokens: it would take places in a sliding window, which counts places.

    Args:
        mask: (B, past + S), nonzero at real tokens; any other form is let through.
        window: width of the window.

    Raises:
        ConfigError: a row has padding behind a real token and before another.
    """
    if mask is None or not is_plain(mask) or torch.compiler.is_compiling():
        return
    real_BN = mask.ne(0)
    ends_BN = real_BN[:, :-1] & ~real_BN[:, 1:]
    if bool((ends_BN.cumsum(dim=1).gt(0) & real_BN[:, 1:]).any()):
        raise ConfigError(
            f"attention_mask of shape {tuple(mask.shape)} with padding between real tokens is not allowed with "
            f"sliding_window={window}, where padding would push tokens out; pad on the left"
        )


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
