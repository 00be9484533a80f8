"""What both forms of sparse attention share: checks, types and the softmax in the plain."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention.block_attention import reference_block_attention, topk_block_attention
from moe_hf.ops.attention.contract import capped, prepared, reference_weights, room_for_gradients, weighted_values
from moe_hf.ops.attention.topk_attention import reference_topk_attention, topk_sparse_attention
from tests.ops.attention.cases import normal


def tensors(heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [normal(2, heads, 3, 4, dtype=dtype), *(normal(2, groups, 7, 4, dtype=dtype) for _ in range(2))]


def test_defaults_are_filled_in_and_half_precision_is_widened() -> None:
    inputs, softmax = prepared(*tensors(dtype=torch.bfloat16), 3, None)
    assert softmax == (0.5, 0.0, 0.0)
    assert {x.dtype for x in inputs[:3]} == {torch.float32}
    assert inputs[3:] == (None, None, None)
    _, softmax = prepared(*tensors(), 3, None, scale=2.0, softcap=5.0)
    assert softmax == (2.0, 5.0, 0.0)


def test_a_seed_is_drawn_only_for_dropout() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    prepared(*tensors(), 3, None)
    assert torch.equal(torch.get_rng_state(), before)
    assert prepared(*tensors(), 3, None, dropout=0.5)[0].seed is not None
    assert not torch.equal(torch.get_rng_state(), before)


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(ConfigError, match="4 query heads do not divide among 3 key heads"):
        prepared(*tensors(4, 3), 3, None)


def test_the_cap_bounds_and_zero_is_none() -> None:
    logit = torch.tensor([-100.0, 0.1, 100.0])
    torch.testing.assert_close(capped(logit, 3.0), torch.tensor([-3.0, 0.1, 3.0]), rtol=1e-3, atol=1e-4)
    assert capped(logit, 0.0) is logit


def test_a_sink_takes_its_share_and_a_blind_row_gets_zeros() -> None:
    logit = torch.zeros(1, 2, 2, 3)
    logit[:, :, 1] = -torch.inf
    assert reference_weights(logit, None)[0, 0].tolist() == [[pytest.approx(1 / 3)] * 3, [0, 0, 0]]
    shares = reference_weights(logit, torch.tensor([0.0, -torch.inf]))[0, :, 0].sum(dim=-1)
    assert shares.tolist() == pytest.approx([0.75, 1.0])


def test_heads_that_share_values_read_the_same() -> None:
    weight = torch.ones(1, 4, 1, 2)
    out, kept = weighted_values(
        weight, torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 1), 0.0, torch.float64
    )
    assert out.flatten().tolist() == [2, 2, 6, 6]
    assert out.dtype == kept.dtype == torch.float64


def test_gradients_are_as_many_as_the_inputs_and_contiguous() -> None:
    query, key, value = tensors()
    inputs, _ = prepared(query.mT.contiguous().mT, key, value, 3, None, sink_H=torch.zeros(4))
    assert [tuple(x.shape) for x in room_for_gradients(inputs)] == [query.shape, key.shape, value.shape, (4,)]
    assert all(x.is_contiguous() for x in room_for_gradients(inputs))
    assert room_for_gradients(inputs._replace(sink_H=None))[3].numel() == 0


@pytest.mark.parametrize("needs_gradients", [False, True])
@pytest.mark.parametrize(
    "attention", [topk_sparse_attention, reference_topk_attention, topk_block_attention, reference_block_attention]
)
def test_autocast_changes_neither_values_nor_gradients(attention, needs_gradients: bool) -> None:
    results = []
    for enabled in (False, True):
        query, key, value = (normal(*x.shape, seed=i, dtype=torch.float32) for i, x in enumerate(tensors()))
        query.requires_grad_(needs_gradients)
        options = {} if "topk_attention" in attention.__module__ else {"block_size": 2}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = attention(query, key, value, 2, **options)
            out = out if isinstance(out, torch.Tensor) else out[0]
        if needs_gradients:
            # Where training has it: torch's own backward passes would be cast inside.
            out.square().sum().backward()
        results.append((out, query.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
