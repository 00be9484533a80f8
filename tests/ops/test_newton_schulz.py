import math

import pytest
import torch

from moe_hf.ops.newton_schulz import _MARGIN, QUINTICS, NewtonSchulzRoom, newton_schulz, newton_schulz_in


def reference_newton_schulz(matrix):
    """One matrix in float64, as the textbook writes it."""
    x = matrix.double()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (x @ x.T).norm().mul(_MARGIN).sqrt()
    for a, b, c in QUINTICS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


def random_matrices(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 6, 6), (3, 5, 7), (3, 7, 5), (2, 4, 40), (2, 40, 4), (3, 1, 7)])
def test_equals_the_plain_iteration_on_each_matrix(shape):
    matrices = random_matrices(*shape)
    expected = torch.stack([reference_newton_schulz(matrix) for matrix in matrices])
    found = newton_schulz(matrices, precision=torch.float32)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 128, 128)])
def test_pushes_singular_values_to_about_one(shape, precision):
    singular = torch.linalg.svdvals(newton_schulz(random_matrices(*shape), precision=precision).float())
    # A square matrix of random numbers has a few that are smaller than 0.003 of the largest.
    assert (singular > 0.75).float().mean() > 0.98
    assert singular.max() < 1.3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_single_large_direction_does_not_run_away(precision):
    # Rank 1: the bound on the largest singular value is the value itself, at the edge of where the quintics hold.
    vector = random_matrices(5, 24, 1)
    singular = torch.linalg.svdvals(newton_schulz(vector @ vector.mT, precision=precision).float())
    assert 0.75 < singular[:, 0].min() <= singular[:, 0].max() < 1.3


def test_each_quintic_is_the_best_for_what_the_one_before_leaves():
    low, high = 0.003, 1.0
    for a, b, c in QUINTICS:
        x = torch.linspace(math.log(low), math.log(high), 20001, dtype=torch.float64).exp()
        y = a * x + b * x**3 + c * x**5
        # The best of three coefficients misses 1 by the same at four places, on alternating sides.
        error = 1 - y
        turns = [
            error[0],
            *(e for e in error[1:-1][(error[1:-1] - error[:-2]) * (error[2:] - error[1:-1]) < 0]),
            error[-1],
        ]
        assert len(turns) == 4
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        torch.testing.assert_close(torch.stack(turns) * signs, error.abs().max().expand(4), rtol=0, atol=1e-3)
        low, high = y.min().item(), y.max().item() * 1.01
    assert 0.79 < low < high < 1.23


def test_keeps_an_expert_without_gradient_still():
    matrices = random_matrices(2, 4, 8)
    matrices[1] = 0
    assert newton_schulz(matrices)[1].abs().max() == 0


def test_what_may_be_rounding_stays_small():
    found = newton_schulz(1e-12 * random_matrices(1, 4, 4), precision=torch.float32)
    assert found.abs().max() < 0.1


def test_a_room_serves_batch_after_batch():
    room = NewtonSchulzRoom.like(torch.empty(5, 4, 6), torch.float32)
    for count, seed in ((5, 0), (2, 1)):
        matrices = random_matrices(count, 4, 6, seed=seed)
        of_batch = room.first(count)
        of_batch.matrix_NRC.copy_(matrices)
        assert torch.equal(newton_schulz_in(of_batch), newton_schulz(matrices, precision=torch.float32))
