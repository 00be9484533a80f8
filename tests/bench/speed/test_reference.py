"""The reference that every backend must equal."""

import torch

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.speed.opponents import draw_weights
from moe_hf.bench.speed.reference import ReferenceExperts
from tests.bench.measured import SIZE


def test_reference_has_no_backend_in_it_and_skips_slots():
    weights = draw_weights(SIZE, Options())
    x_TD, weight_TK = torch.randn(3, 16), torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
    expert_TK = torch.tensor([[0, 3], [4, 2], [4, 4]])
    found_TD = ReferenceExperts(weights, "gelu")(x_TD, expert_TK, weight_TK)

    def expert(token, index):
        hidden = torch.nn.functional.gelu(weights.up_proj[index] @ x_TD[token] + weights.up_proj_bias[index])
        return weights.down_proj[index] @ hidden + weights.down_proj_bias[index]

    torch.testing.assert_close(found_TD[0], 0.25 * expert(0, 0) + 0.75 * expert(0, 3))
    torch.testing.assert_close(found_TD[1], 0.5 * expert(1, 2))
    assert not found_TD[2].any()
