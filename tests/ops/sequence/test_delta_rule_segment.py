"""One segment of the delta rule: the same whatever the chunk, forwards and backwards, with padding and documents."""

import pytest
import torch
from torch.nn.functional import normalize

from moe_hf.ops.sequence.contract import Edges
from moe_hf.ops.sequence.delta_rule import reference_delta_rule
from moe_hf.ops.sequence.delta_rule_segment import Sequences, segment_backward, segment_forward

B, S, H, K, V = 2, 12, 3, 5, 4


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens() -> Sequences:
    receptance, decay, key, a, b = (draw(B, S, H, K, seed=seed) for seed in range(5))
    unit = normalize(a, dim=-1)
    return Sequences(receptance, -0.6 * decay.sigmoid(), key, draw(B, S, H, V, seed=5), -unit, unit * b.sigmoid())


def edges(kind: str) -> Edges:
    mask, starts = torch.ones(B, S, dtype=torch.long), torch.zeros(B, S, dtype=torch.bool)
    mask[0, [0, 4, 5]], mask[1, -2:] = 0, 0
    starts[0, 7], starts[1, [0, 3, 4]] = True, True
    return Edges(mask if "padding" in kind else None, starts if "documents" in kind else None)


@pytest.mark.parametrize("kind", ["plain", "padding", "documents", "padding and documents"])
@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_each_chunk_size_gives_the_reference_in_value_and_gradient(chunk: int, kind: str) -> None:
    given, around, state = tokens(), edges(kind), draw(B, H, V, K, seed=6)
    leaves = [x.requires_grad_() for x in (*given, state)]
    options = {"mask_BS": around.mask_BS, "starts_BS": around.starts_BS}
    wanted, last = reference_delta_rule(*leaves[:6], initial_state=state, **options)
    dout, dlast = draw(B, S, H, V, seed=7), draw(B, H, V, K, seed=8)
    real = torch.ones(B, S, 1, 1) if around.mask_BS is None else around.mask_BS[..., None, None]
    gradients = torch.autograd.grad((wanted * dout * real).sum() + (last * dlast).sum(), leaves)
    with torch.no_grad():
        out, after = segment_forward(given, around, state, chunk)
        found, dfirst = segment_backward(dout * real, dlast, given, around, state, chunk)
    torch.testing.assert_close(out * real, wanted * real)
    torch.testing.assert_close(after, last)
    for one, other in zip((*found, dfirst), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_are_cut_as_views() -> None:
    given = tokens()
    part = given.between(3, 7)
    assert part.key.shape == (B, 4, H, K)
    assert part.value.data_ptr() == given.value[:, 3].data_ptr()
