"""Bytes kept for backward, and the most held at once."""

import torch

from moe_hf.bench.harness.memory import saved_bytes, step_memory

CPU = torch.device("cpu")


def test_saved_bytes_count_each_storage_once_and_not_what_is_known():
    x_TD, weight_DD = torch.randn(5, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def forward():
        h_TD = x_TD @ weight_DD
        # Keeps h once as an input of gelu; the view of it by transposing adds nothing.
        return torch.nn.functional.gelu(h_TD).sum() + torch.nn.functional.gelu(h_TD.T).sum()

    assert saved_bytes(forward, [x_TD, weight_DD]) == 5 * 4 * 4
    assert saved_bytes(forward, []) == 5 * 4 * 4 + x_TD.numel() * 4 + weight_DD.numel() * 4


def test_peak_memory_is_the_most_held_at_once():
    kept = []

    def step():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first
        kept.append(torch.empty(200, dtype=torch.uint8))
        del second

    found = step_memory(step, CPU)
    assert (found.peak, found.left) == (1500, 200)
