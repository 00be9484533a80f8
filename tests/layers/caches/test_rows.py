"""Every way of changing rows reaches all states, and what stands behind them."""

import torch

from moe_hf.layers.caches.rows import ChangesRows


class Rows:
    """Stands for a class of transformers' that keeps rows: notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.asked.append(("reorder", beam_idx.tolist()))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.asked.append(("repeat", repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.asked.append(("select", indices.tolist()))


class Counted(ChangesRows, Rows):
    def __init__(self) -> None:
        super().__init__()
        self.count_B = torch.tensor([10, 20, 30])

    def change_states(self, change) -> None:
        self.count_B = change(self.count_B)


def test_rows_are_reordered_repeated_and_selected() -> None:
    cache = Counted()
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert cache.count_B.tolist() == [30, 30, 10]
    cache.batch_repeat_interleave(2)
    assert cache.count_B.tolist() == [30, 30, 30, 30, 10, 10]
    cache.batch_select_indices(torch.tensor([0, 5]))
    assert cache.count_B.tolist() == [30, 10]
    assert cache.asked == [("reorder", [2, 2, 0]), ("repeat", 2), ("select", [0, 5])]
