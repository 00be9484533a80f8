"""The passes of scalar decay: segments, the decays between their points, and states that are carried both ways."""

import pytest
import torch

from moe_hf.ops.sequence.contract import Segment, Segments
from moe_hf.ops.sequence.scalar_decay import scalar_decay
from moe_hf.ops.sequence.scalar_decay_passes import Inputs, backward_pass, carry, decays_of, forward_pass, grouped
from tests.ops.largest import LargestTensor

B, S, G, H, K, V = 2, 11, 2, 4, 5, 3


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(starts: bool = True, per_token: bool = True) -> Inputs:
    log_decay = -draw(*((B, S, H) if per_token else (H,)), seed=3).abs()
    starts_BS = torch.zeros(B, S, dtype=torch.bool)
    starts_BS[0, [2, 9]], starts_BS[1, 0] = True, True
    tensors = (draw(B, S, G, K, seed=0), draw(B, S, G, K, seed=1), draw(B, S, H, V, seed=2))
    return Inputs(*tensors, log_decay, starts_BS if starts else None)


def test_a_piece_of_a_sequence_is_a_view_by_chunk_and_group() -> None:
    value = inputs().value_BSHV
    found = grouped(value, G, Segment(2, 8, 3), value.dtype)
    assert found.shape == (B, 2, G, 3, H // G, V)
    assert torch.equal(found[1, 1, 1, 0, 1], value[1, 5, 3])
    assert found.data_ptr() == value[:, 2].data_ptr()


@pytest.mark.parametrize("per_token", [True, False])
def test_decays_are_products_of_those_between_and_stop_at_starts(per_token: bool) -> None:
    given = inputs(per_token=per_token)
    since, until, whole, between, reach = decays_of(given, Segment(0, 10, 5))
    log = given.log_decay.expand(B, S, H).unflatten(2, (G, -1))
    # Row 0, first chunk: a document begins at its third token.
    torch.testing.assert_close(since[0, 0, :, 1, :, 0], log[0, :2].sum(0).exp())
    assert since[0, 0, :, 2:].count_nonzero() == until[0, 0, :, :2].count_nonzero() == whole[0, 0].count_nonzero() == 0
    torch.testing.assert_close(until[0, 0, :, 2, :, 0], log[0, 3:5].sum(0).exp())
    torch.testing.assert_close(between.expand(B, 2, -1, -1, -1, -1)[0, 0, :, :, 4, 2], log[0, 3:5].sum(0).exp())
    assert reach[0, 0, 0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_states_are_carried_from_chunk_to_chunk_and_gradients_back() -> None:
    state, added, whole = draw(B, G, K, 2 * V, seed=0), draw(B, 3, G, K, 2 * V, seed=1), draw(B, 3, G, 1, 2, 1, seed=2)
    factor = whole.expand(-1, -1, -1, -1, -1, V).flatten(4)
    each, last = carry(state, added, whole)
    wanted = [state]
    for n in range(3):
        wanted.append(factor[:, n] * wanted[-1] + added[:, n])
    torch.testing.assert_close(each, torch.stack(wanted[:3], dim=1))
    torch.testing.assert_close(last, wanted[3])
    after, first = carry(state, added, whole, backwards=True)
    wanted = [state]
    for n in reversed(range(3)):
        wanted.append(factor[:, n] * wanted[-1] + added[:, n])
    torch.testing.assert_close(after, torch.stack(wanted[2::-1], dim=1))
    torch.testing.assert_close(first, wanted[3])


@pytest.mark.parametrize("starts", [True, False])
def test_how_a_sequence_is_cut_changes_no_value_and_no_gradient(starts: bool) -> None:
    given, state = inputs(starts), draw(B, G, K, H // G * V, seed=4)
    dout, dstate, found = draw(B, S, H, V, seed=5), draw(*state.shape, seed=6), []
    for segments in (Segments(16, 16), Segments(2, 4), Segments(3, 9)):
        kept = state.new_zeros(segments.limit(S), *state.shape)
        out, last = forward_pass(given, state, segments, kept)
        found.append((out, last, *backward_pass(given, kept, segments, dout, dstate, needs_decay=True)))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same)
    assert backward_pass(given, kept, segments, dout, dstate, needs_decay=False).log_decay is None


def test_no_temporary_grows_with_the_sequence_but_what_is_returned() -> None:
    # Width 1 makes what is returned small: anything of chunk x length, or of a state per token, would stand out.
    length, segment = 2048, 64
    query, key, value = (torch.randn(1, length, 1, 1, requires_grad=True) for _ in range(3))
    log_decay = torch.full((1, length, 1), -0.1, requires_grad=True)
    with LargestTensor() as largest:
        out, _ = scalar_decay(query, key, value, log_decay, chunk_size=16, segment_size=segment)
        out.sum().backward()
    assert largest.numbers <= length
