"""What MegaByte keeps between calls: the global decoder's cache, and each row's unfinished patch.

Shapes: B batch, S bytes of a call, K patches, C columns of the global cache, P bytes per patch, R bytes looked
back at, L width of the local decoder, E experts, k slots.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.rows import ChangesRows
from moe_hf.layers.caches.states import detach_states, rows_of

Routing = dict[str, list[torch.Tensor]]
"""What the global decoder's routers said about each row's current patch, by name and sparse layer: (B, E) or (B, k)."""


class MegaByteCache(ChangesRows, Cache):
    """Two caches and the place of each row in its patch, which may differ between rows.

    The global cache grows once per patch, by one column for all rows together: rows that did not finish a patch then
    have a hidden column. The local cache holds the current patch alone, behind what the local decoder looks back
    at; where the rows' places differ and it looks back, there is none.

    Attributes:
        global_cache: of the global decoder.
        global_mask_BC: False at hidden columns of it; None where there are none.
        local_cache: of the local decoder; None where the patch must be read anew.
        seen: bytes of each row so far, padding included.
        phase_B: bytes of the current patch so far, in [0, P).
        common_phase: the phase of all rows; None where they differ.
        patch_B: number of the current patch, counted from 0.
        tail_BP: the bytes of the current patch; arbitrary from `phase_B` on.
        before_BR: the last bytes of the patch before, as many as the local decoder looks back; arbitrary in patch 0.
        context_BPL: what the global model gives to each place of the current patch.
        routing: see `Routing`.
    """

    def __init__(self, global_cache: Cache) -> None:
        super().__init__(layers=[])
        self.global_cache = global_cache
        self._begin()

    def _begin(self) -> None:
        self.local_cache: Cache | None = None
        self.seen = 0
        # Known to the host, so that a step need not ask the device where the rows stand.
        self.common_phase: int | None = 0
        self.global_mask_BC: torch.Tensor | None = None
        self.phase_B = self.patch_B = self.tail_BP = self.before_BR = self.context_BPL = torch.empty(0)
        self.routing: Routing = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Bytes of each row so far, padding included."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As for a cache of as many keys as bytes."""
        return self.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no longest sequence."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """-1, by the name that older versions of transformers ask."""
        return -1

    @property
    def is_initialized(self) -> bool:
        """Whether anything was seen."""
        return self.seen > 0

    @property
    def is_linear(self) -> list[bool]:
        """Not so: transformers takes a cache without layers for one whose length does not count."""
        return [False]

    @property
    def is_croppable(self) -> bool:
        """False: see `crop`."""
        return False

    @property
    def batch_size(self) -> int:
        """Rows, -1 before the first call."""
        return len(self.phase_B) if self.seen else -1

    def reset(self) -> None:
        """Forget everything."""
        self.global_cache.reset()
        for layer in self.global_cache.layers:
            if isinstance(layer, DynamicLayer):
                # Older versions of transformers keep zeros of the old length.
                layer.keys, layer.values, layer.is_initialized = None, None, False
        self._begin()

    def change_rest(self, way: str, argument: Any) -> None:
        """The same for the caches of both decoders."""
        for cache in self._caches():
            getattr(cache, way)(argument)

    def detach(self) -> None:
        """Cut the gradient between what is held and the calls that it came from (truncated backpropagation)."""
        for cache in self._caches():
            detach_states(cache)
        self.change_states(torch.Tensor.detach)

    def crop(self, *_: Any) -> None:
        """Refuse: finished patches do not keep the states within them.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"a MegaByteCache of {self.get_seq_length()} bytes cannot be cut back; generate without assisted decoding"
        )

    def behind_tail(
        self, input_ids: torch.Tensor, mask_BS: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The bytes of the unfinished patches, then those of this call; and the mask of both, None where all are real.

        Args:
            input_ids: (B, S).
            mask_BS: True at real bytes; None means that all are.
        """
        if not self.seen or self.common_phase == 0:
            return input_ids, mask_BS
        width = int(self.phase_B.max()) if self.common_phase is None else self.common_phase
        ids = torch.cat([self.tail_BP[:, :width], input_ids], dim=1)
        if self.common_phase is not None and mask_BS is None:
            return ids, None
        known_BW = torch.arange(width, device=ids.device) < self.phase_B[:, None]
        real_BS = torch.ones_like(input_ids, dtype=torch.bool) if mask_BS is None else mask_BS
        return ids, torch.cat([known_BW, real_BS], dim=1)

    def add_columns(self, real_BK: torch.Tensor | None, batch: int, columns: int) -> torch.Tensor | None:
        """Note which of the global cache's next columns are hidden; returns the mask of all, None where none is.

        Args:
            real_BK: False at columns to hide; None hides none of them.
            batch: B.
            columns: K.
        """
        before = self.global_mask_BC
        if before is None and real_BK is None:
            return None
        device = real_BK.device if real_BK is not None else self.phase_B.device
        if before is None:
            seen = int(self.global_cache.get_seq_length())
            before = torch.ones(batch, seen, dtype=torch.bool, device=device)
        if real_BK is None:
            real_BK = torch.ones(batch, columns, dtype=torch.bool, device=device)
        self.global_mask_BC = torch.cat([before, real_BK], dim=1)
        return self.global_mask_BC

    def remember(
        self,
        grid_BKP: torch.Tensor,
        before_BKR: torch.Tensor,
        context_BKPL: torch.Tensor,
        routing: Routing,
        length: int,
        count: int | torch.Tensor,
    ) -> None:
        """Note where each row stands after a call.

        Args:
            grid_BKP: the bytes, from the current patch of each row on.
            before_BKR: the bytes before each patch, as `before_BR` has them.
            context_BKPL: what the global model gives to them.
            routing: what its routers said about each patch, (B, K, E) or (B, K, k).
            length: S, the bytes of this call, padding included.
            count: real bytes in the grid, of all rows or of each.
        """
        batch, _, size = grid_BKP.shape
        count_B = count if isinstance(count, torch.Tensor) else torch.full((batch,), count, device=grid_BKP.device)
        last_B, row_B = count_B // size, torch.arange(batch, device=grid_BKP.device)
        self.patch_B = self.patch_B + last_B if self.seen else last_B
        self.phase_B = count_B % size
        self.common_phase = None
        if isinstance(count, int):
            self.common_phase = count % size
        elif int(self.phase_B.min()) == int(self.phase_B.max()):
            self.common_phase = int(self.phase_B[0])
        # Whatever a call finished is known to the global cache; only the patch under way has to be kept byte by byte.
        self.tail_BP = grid_BKP[row_B, last_B]
        self.before_BR = before_BKR[row_B, last_B]
        self.context_BPL = context_BKPL[row_B, last_B]
        self.routing = {name: [x_BKE[row_B, last_B] for x_BKE in layers] for name, layers in routing.items()}
        self.local_cache = None
        self.seen += length

    def behind_known(self, routing: Routing) -> Routing:
        """What routers said about the current patch, then what they said about those of a call, (B, K, ...)."""
        return {
            name: [
                torch.cat([known[:, None], *new], dim=1)
                for known, *new in zip(layers, *([routing[name]] if routing[name] else []), strict=True)
            ]
            for name, layers in self.routing.items()
        }

    def add_byte(self, byte_B1: torch.Tensor) -> None:
        """Put one real byte into the current patch of every row, which may be full then."""
        self.seen += 1
        self.tail_BP = self.tail_BP.scatter(1, self.phase_B[:, None], byte_B1)
        self.phase_B = self.phase_B + 1
        if self.common_phase is not None:
            self.common_phase += 1

    def next_patches(self, full_B: torch.Tensor, context_BPL: torch.Tensor, routing: Routing) -> None:
        """Begin a new patch in the rows whose patch is full: its context, and what the routers said about it."""
        self.context_BPL = torch.where(full_B[:, None, None], context_BPL, self.context_BPL)
        self.routing = {
            name: [torch.where(full_B[:, None], new, old) for new, old in zip(routing[name], layers, strict=True)]
            for name, layers in self.routing.items()
        }
        before_BR = self.tail_BP[:, self.tail_BP.shape[1] - self.before_BR.shape[1] :]
        self.before_BR = torch.where(full_B[:, None], before_BR, self.before_BR)
        self.patch_B = self.patch_B + full_B.long()
        self.phase_B = self.phase_B.masked_fill(full_B, 0)
        if self.common_phase is not None:
            self.common_phase = 0

    def trim_local(self, columns: int) -> int:
        """Cut the local cache down to its last `columns`; returns how many it has."""
        if self.local_cache is None:
            return 0
        for layer in self.local_cache.layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized and layer.get_seq_length() > columns:
                layer.keys, layer.values = (x[:, :, -columns:] for x in (layer.keys, layer.values) if x is not None)
        return int(self.local_cache.get_seq_length())

    def _caches(self) -> list[Cache]:
        return [self.global_cache] if self.local_cache is None else [self.global_cache, self.local_cache]

    def change_states(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """As in ChangesRows."""
        if not self.seen:
            return
        for name in ("phase_B", "patch_B", "tail_BP", "before_BR", "context_BPL"):
            setattr(self, name, change(getattr(self, name)))
        if self.global_mask_BC is not None:
            self.global_mask_BC = change(self.global_mask_BC)
        self.routing = {name: [change(state) for state in states] for name, states in self.routing.items()}


@rows_of.register
def _(cache: MegaByteCache) -> int | None:
    return cache.batch_size if cache.seen else None


@detach_states.register
def _(cache: MegaByteCache) -> None:
    cache.detach()


def real_bytes(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """(B, S), True at real bytes of a call of `length` bytes; None where all are.

    Args:
        attention_mask: (B, past + S), nonzero at real bytes.
        length: S.

    Raises:
        ConfigError: the mask has another form.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        form = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
        raise ConfigError(
            f"attention_mask of shape {form} is not allowed; it must be (batch, bytes), nonzero at real bytes"
        )
    real_BS = attention_mask[:, -length:] != 0
    # Worth waiting for on any device: a byte that is real in every row is read in one step.
    return None if not torch.compiler.is_compiling() and bool(real_BS.all()) else real_BS
