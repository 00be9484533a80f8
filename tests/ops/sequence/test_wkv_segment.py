"""One segment of WKV: the same whatever the chunk, forwards and backwards, with padding and documents."""

import pytest
import torch

from moe_hf.ops.sequence.contract import Edges
from moe_hf.ops.sequence.wkv import reference_wkv
from moe_hf.ops.sequence.wkv_segment import WkvInputs, segment_backward, segment_forward

B, S, D = 2, 12, 5


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(spread: float) -> WkvInputs:
    decay = torch.tensor([1e-3, 0.1, 0.7, 2.0, 20.0], dtype=torch.float64)
    return WkvInputs(decay, draw(D, seed=1), spread * draw(B, S, D, seed=2), draw(B, S, D, seed=3))


def edges(kind: str) -> Edges:
    mask, starts = torch.ones(B, S, dtype=torch.long), torch.zeros(B, S, dtype=torch.bool)
    mask[0, [0, 4, 5]], mask[1, -2:] = 0, 0
    starts[0, 7], starts[1, [0, 3, 4]] = True, True
    return Edges(mask if "padding" in kind else None, starts if "documents" in kind else None)


@pytest.mark.parametrize("kind", ["plain", "padding", "documents", "padding and documents"])
@pytest.mark.parametrize("chunk", [1, 4, 12])
@pytest.mark.parametrize("spread", [1.0, 50.0])
def test_each_chunk_size_gives_the_reference_in_value_and_gradient(chunk: int, kind: str, spread: float) -> None:
    given, around = inputs(spread), edges(kind)
    state = torch.stack([draw(B, D, seed=4), draw(B, D, seed=5).exp(), draw(B, D, seed=6)], dim=1)
    leaves = [x.requires_grad_() for x in (*given, state)]
    options = {"mask_BS": around.mask_BS, "starts_BS": around.starts_BS}
    wanted, last = reference_wkv(*leaves[:4], initial_state=state, **options)
    real = torch.ones(B, S, 1) if around.mask_BS is None else around.mask_BS[..., None]
    # An average of what the state holds: no use of it asks for its scale alone.
    dout, average = draw(B, S, D, seed=7) * real, last[:, 0] / last[:, 1]
    gradients = torch.autograd.grad((wanted * dout).sum() + average.sum(), leaves)
    with torch.no_grad():
        out, after = segment_forward(given, around, state, chunk)
        dafter = torch.stack([1 / after[:, 1], -after[:, 0] / after[:, 1].square(), torch.zeros(B, D)], dim=1)
        found, dfirst = segment_backward(dout, dafter, given, around, state, chunk)
    torch.testing.assert_close(out * real, wanted * real)
    torch.testing.assert_close(after[:, 0] / after[:, 1], average)
    for one, other in zip((*found, dfirst[:, :2]), (*gradients[:4], gradients[4][:, :2]), strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_belongs_to_tokens_is_cut() -> None:
    given = inputs(1.0)
    part = given.between(3, 7)
    assert part.key_BSD.shape == (B, 4, D)
    assert part.decay_D is given.decay_D
