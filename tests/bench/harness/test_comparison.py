"""What an arm computes is compared with its reference before anything is timed."""

import pytest
import torch

from moe_hf.bench.harness.comparison import relative_errors


def test_wrong_gradient_of_a_bias_shows_beside_the_large_gradients_of_the_weights():
    expected = [torch.ones(2), torch.full((100, 100), 3.0), torch.ones(4)]
    found = [*expected[:2], torch.full((4,), 1.5)]
    assert relative_errors(found, expected) == pytest.approx([0.0, 0.0, 0.5])


def test_gradient_that_is_rounding_noise_alone_is_no_error():
    expected = [torch.ones(2), torch.ones(100), torch.tensor([1e-9, -1e-9])]
    found = [*expected[:2], torch.tensor([-1e-9, 2e-9])]
    assert max(relative_errors(found, expected)) < 1e-6
