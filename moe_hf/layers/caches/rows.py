"""What the caches of this package share: the three ways in which generation changes their rows."""

from collections.abc import Callable
from typing import Any

import torch


class ChangesRows:
    """Mixed in before a class of transformers' that keeps rows; each way is one function of every state."""

    # Not an ABC: functions that dispatch on a cache's class would ask for a token that compilers cannot trace.
    def change_states(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace each state by `change(state)`; the batch is its first dimension."""
        raise NotImplementedError(f"{type(self).__name__} does not say what states it keeps")

    def change_rest(self, way: str, argument: Any) -> None:
        """The same for what the next class in line keeps."""
        getattr(super(), way)(argument)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """The rows of `beam_idx`, in its order."""
        self.change_rest("reorder_cache", beam_idx)
        self.change_states(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times in a row."""
        self.change_rest("batch_repeat_interleave", repeats)
        self.change_states(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only the rows of `indices`."""
        self.change_rest("batch_select_indices", indices)
        self.change_states(lambda state: state[indices.to(state.device)])
