"""A sequence that grows at its end, in memory with room to spare.

Shapes: B batch, n entries so far, S new entries, C channels.
"""

from collections.abc import Callable

import torch

# Room that is made beyond what is needed: entries, and a share of those there are.
_ROOM, _ROOM_SHARE = 64, 4


class GrowingRows:
    """(B, n, C): extended in place under `no_grad`, by copies where a gradient may be asked for.

    Args:
        keep: how many entries must stay readable; None keeps all.

    Attributes:
        dropped: entries that are gone because no more had to stay readable.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.dropped = 0
        self._buffer: torch.Tensor | None = None
        self._length = 0
        # Of each row, zeros at its front that stand for entries that were dropped; None where there are none.
        self._lost_B: torch.Tensor | None = None

    def __len__(self) -> int:
        return self._length

    def read(self) -> torch.Tensor | None:
        """The entries, a view; None where there are none."""
        return None if self._buffer is None or self._length == 0 else self._buffer[:, : self._length]

    def least_left(self, removed_B: torch.Tensor | int) -> int:
        """Entries that the row with the fewest can still show after so many are taken off; all, if none was dropped."""
        if self._lost_B is None:
            most = removed_B if isinstance(removed_B, int) else int(removed_B.max())
        else:
            most = int((torch.as_tensor(removed_B, device=self._lost_B.device) + self._lost_B).max())
        return self._length - most

    def append(self, new_BSC: torch.Tensor) -> None:
        """Put entries at the end."""
        if torch.is_grad_enabled():
            # Someone may have kept the entries for a backward pass.
            old = self.read()
            self.replace(new_BSC if old is None else torch.cat([old, new_BSC], dim=1))
            return
        if self.keep is not None and new_BSC.shape[1] > self.keep:
            self._note_dropped(self._length + new_BSC.shape[1] - self.keep)
            new_BSC, self._buffer, self._length = new_BSC[:, -self.keep :], None, 0
        buffer = self._room_for(new_BSC)
        buffer[:, self._length : self._length + new_BSC.shape[1]] = new_BSC
        self._length += new_BSC.shape[1]

    def replace(self, all_BnC: torch.Tensor, moved_B: torch.Tensor | None = None) -> None:
        """Let these be the entries; what was dropped before stays dropped.

        Args:
            all_BnC: the entries.
            moved_B: by how many zeros in front of it each row was moved towards the end.
        """
        if self.dropped and moved_B is not None:
            self._lost_B = moved_B if self._lost_B is None else self._lost_B + moved_B
        if self.keep is not None and all_BnC.shape[1] > self.keep:
            self._note_dropped(all_BnC.shape[1] - self.keep)
            all_BnC = all_BnC[:, -self.keep :]
        self._buffer, self._length = all_BnC, all_BnC.shape[1]

    def cut(self, count: int) -> None:
        """Take so many entries off the end."""
        self._length = max(0, self._length - count)

    def shift(self, count_B: torch.Tensor) -> None:
        """Take so many entries off the end of each row, and align the rows at the end; zeros come in before."""
        # What all rows lose is cut off at no cost; only where they differ must entries be moved.
        least = int(count_B.min())
        self.cut(least)
        rows = self.read()
        if rows is None:
            return
        further_B = (count_B - least).to(rows.device)
        source_Bn = torch.arange(self._length, device=rows.device) - further_B[:, None]
        moved = rows.gather(1, source_Bn.clamp(min=0)[..., None].expand_as(rows))
        self.replace(moved.masked_fill((source_Bn < 0)[..., None], 0), further_B)

    def change(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a function of the batch, such as a choice of rows."""
        if self._buffer is not None:
            self._buffer = function(self._buffer)
        if self._lost_B is not None:
            self._lost_B = function(self._lost_B)

    def _note_dropped(self, count: int) -> None:
        """Entries are about to be taken off the front, zeros that stand for others first."""
        self.dropped += count
        if self._lost_B is not None:
            self._lost_B = (self._lost_B - count).clamp(min=0)

    def _room_for(self, new_BSC: torch.Tensor) -> torch.Tensor:
        """A buffer with room for these behind the entries, which must not be seen by whoever holds the old one."""
        needed = self._length + new_BSC.shape[1]
        old = self._buffer
        # A tensor made in inference mode may not be written to outside.
        writable = old is not None and (torch.is_inference_mode_enabled() or not old.is_inference())
        if old is not None and writable and not old.requires_grad and needed <= old.shape[1]:
            return old
        kept = self.read()
        if kept is not None and self.keep is not None and self._length > self.keep:
            self._note_dropped(self._length - self.keep)
            kept, self._length = kept[:, -self.keep :], self.keep
            needed = self._length + new_BSC.shape[1]
        batch, _, channels = new_BSC.shape
        # The room grows with the length: on average a token is copied as often, however many there are.
        room = needed + max(_ROOM, needed // _ROOM_SHARE if self.keep is None else self.keep)
        self._buffer = new_BSC.new_zeros(batch, room, channels)
        if kept is not None:
            self._buffer[:, : self._length] = kept
        return self._buffer
