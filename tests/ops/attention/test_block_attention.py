"""Attention to chosen blocks: equal to its reference in value and gradient; causal; blind to padding and packing."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention import block_passes
from moe_hf.ops.attention.block_attention import reference_block_attention, topk_block_attention
from tests.ops.attention.cases import distance, inputs, normal


def causal(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(2, 1, queries, keys, dtype=torch.bool).tril(keys - queries)


def padded() -> torch.Tensor:
    mask = causal(13, 20)
    mask[0, :, :, :9] = False
    mask[1, :, :, 3:5] = False
    return mask


def packed() -> torch.Tensor:
    document = torch.tensor([[0] * 11 + [1] * 2 + [2] * 7, [0] * 5 + [1] * 15])
    return causal(20, 20) & (document[:, None, :, None] == document[:, None, None])


MASKS: dict[str, dict[str, Any]] = {
    "at the end of the keys": {},
    "at the first keys": {"query_start": 0},
    "softcap": {"softcap": 1.5},
    "causal mask": {"mask": causal(13, 20)},
    "padding": {"mask": padded()},
    "float mask": {"mask": torch.where(padded(), 0.0, torch.finfo(torch.float32).min)},
    "packed": {"mask": packed()},
}


def test_the_reference_attends_to_the_own_block_and_the_best_past_ones() -> None:
    query, key, value = (x.detach() for x in inputs(1, 1, 1, 14, 14))
    out, weight = reference_block_attention(query, key, value, 2, block_size=4, scale=0.7)
    for row in range(14):
        own = row // 4
        gates = {block: float(query[0, 0, row] @ key[0, 0, 4 * block : 4 * block + 4].mean(0)) for block in range(own)}
        best = sorted(gates, key=lambda block: -gates[block])[:1]
        seen = [n for n in range(row + 1) if n // 4 in [*best, own]]
        kept = (0.7 * key[0, 0, seen] @ query[0, 0, row]).softmax(dim=0)
        torch.testing.assert_close(out[0, 0, row], kept @ value[0, 0, seen])
        assert weight[0, 0, row].nonzero().flatten().tolist() == seen


@pytest.mark.parametrize("form", ["block after block", "gathered"])
@pytest.mark.parametrize("top_k", [1, 3, 0.4, 50])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_equals_the_reference_in_value_and_gradient(
    options: dict[str, Any], top_k: int | float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "block after block":
        monkeypatch.setattr(block_passes, "_FEW_ROWS", 0)
        monkeypatch.setattr(block_passes, "_FEW_GATES", 0)
        monkeypatch.setattr(block_passes, "_PAIRS_AT_ONCE", 20)
    queries = options["mask"].shape[2] if "mask" in options else 13
    tensors = inputs(2, 4, 2, queries, 20)
    sink = normal(4, seed=9).requires_grad_()
    options = {**options, "block_size": 4, "sink_H": sink}
    out = topk_block_attention(*tensors, top_k, **options)
    wanted, _ = reference_block_attention(*tensors, top_k, **options)
    assert distance(out, wanted) < 1e-12
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, [*tensors, sink], dout)
    for got, expected in zip(grads, torch.autograd.grad(wanted, [*tensors, sink], dout), strict=True):
        assert distance(got, expected) < 1e-12
    with torch.no_grad():
        assert distance(topk_block_attention(*tensors, top_k, **options), wanted) < 1e-12


@pytest.mark.parametrize("length", [1, 15, 16, 17, 65, 130])
def test_blocks_enough_for_all_keys_equal_sdpa(length: int) -> None:
    query, key, value = (x.detach() for x in inputs(2, 4, 2, length, length, torch.float32))
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert distance(topk_block_attention(query, key, value, 9, block_size=16), wanted) < 1e-6


def test_prefill_equals_decoding_token_by_token() -> None:
    query, key, value = (x.detach() for x in inputs(2, 4, 2, 70, 70))
    whole = topk_block_attention(query, key, value, 2, block_size=8)
    for n in range(70):
        step = topk_block_attention(query[:, :, n : n + 1], key[:, :, : n + 1], value[:, :, : n + 1], 2, block_size=8)
        assert distance(step, whole[:, :, n : n + 1]) < 1e-12


def test_what_comes_later_changes_nothing() -> None:
    query, key, value = (x.detach() for x in inputs(1, 2, 2, 40, 40))
    out = topk_block_attention(query, key, value, 2, block_size=8)
    for x in (query, key, value):
        x[:, :, 21:] = 9.0
    assert topk_block_attention(query, key, value, 2, block_size=8)[:, :, :21].equal(out[:, :, :21])


def test_left_padding_moves_the_blocks_along() -> None:
    query, key, value = (x.detach()[:1] for x in inputs(2, 4, 2, 30, 30))
    wanted = topk_block_attention(query, key, value, 2, block_size=8)
    query, key, value = (F.pad(x, (0, 0, 5, 0), value=7.0) for x in (query, key, value))
    mask = causal(35, 35)[:1]
    mask[..., :5] = False
    out = topk_block_attention(query, key, value, 2, block_size=8, mask=mask)
    assert distance(out[:, :, 5:], wanted) < 1e-12
    assert out[:, :, :5].abs().max() == 0


def test_packed_documents_equal_separate_ones() -> None:
    tensors = [x.detach() for x in inputs(2, 4, 2, 20, 20)]
    out = topk_block_attention(*tensors, 2, block_size=4, mask=packed())
    for row, start, stop in [(0, 0, 11), (0, 11, 13), (0, 13, 20), (1, 0, 5), (1, 5, 20)]:
        alone = topk_block_attention(*(x[row : row + 1, :, start:stop] for x in tensors), 2, block_size=4)
        assert distance(out[row : row + 1, :, start:stop], alone) < 1e-12


def test_gradcheck_with_dropout() -> None:
    tensors = inputs(1, 2, 1, 11, 11)
    sink = normal(2, seed=5).requires_grad_()

    def attend(*given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return topk_block_attention(*given[:3], 2, block_size=4, softcap=3.0, sink_H=given[3], dropout=0.3)

    assert attend(*tensors, sink).equal(attend(*tensors, sink))
    assert torch.autograd.gradcheck(attend, (*tensors, sink), fast_mode=True)


def test_dropout_drops_its_share() -> None:
    query, key, value = (x.detach() for x in inputs(1, 2, 2, 90, 90))
    torch.manual_seed(0)
    sums = topk_block_attention(query, key, torch.ones_like(value), 2, block_size=16, dropout=0.25)[..., 0]
    assert sums.std() > 0.1
    assert abs(float(sums.mean()) - 1) < 0.05


def test_half_precision_is_computed_in_float32() -> None:
    tensors = [x.detach().bfloat16() for x in inputs(2, 4, 2, 13, 20)]
    out = topk_block_attention(*tensors, 2, block_size=4)
    assert out.dtype == torch.bfloat16
    assert out.equal(topk_block_attention(*(x.float() for x in tensors), 2, block_size=4).bfloat16())


def test_compiles_forward_and_backward() -> None:
    tensors, mask = inputs(2, 4, 2, 20, 20), packed()

    def loss(*given: torch.Tensor) -> torch.Tensor:
        return topk_block_attention(*given, 2, block_size=4, mask=mask).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(loss(*tensors), tensors)
    for got, expected in zip(torch.autograd.grad(compiled(*tensors), tensors), wanted, strict=True):
        assert got.equal(expected)


def test_the_compiler_is_told_the_strides_of_what_is_transposed() -> None:
    query = normal(2, 13, 4, 5).transpose(1, 2)
    key, value = normal(2, 20, 2, 5, seed=1).transpose(1, 2), normal(2, 20, 2, 6, seed=2).transpose(1, 2)
    given = (query, key, value, None, normal(4), None, 7, 2.0, 4, 0.3, 0.0, 0.0)
    operators = torch.ops.moe_hf
    torch.library.opcheck(operators.topk_block_attention.default, given, test_utils="test_faketensor")
    made = operators.topk_block_attention(*given)
    given = (normal(2, 13, 4, 6).transpose(1, 2), *made, *given)
    torch.library.opcheck(operators.topk_block_attention_backward.default, given, test_utils="test_faketensor")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_k": 0}, "top_k must be an integer >= 1 or a fraction"),
        ({"top_k": "3"}, "got '3'"),
        ({"top_k": 1.0}, "to keep all, which a fraction of 1.0 would mean, give an integer"),
        ({"block_size": 0}, "block_size must be an integer >= 1"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"query_start": 8}, "do not stand among 20 keys"),
        ({"mask": causal(12, 20)}, r"got \(2, 1, 12, 20\)"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        topk_block_attention(*inputs(2, 4, 2, 13, 20), **{"top_k": 3, **options})
    query, key, value = inputs(2, 4, 3, 13, 20)
    with pytest.raises(ConfigError, match="4 query heads do not divide among 3"):
        topk_block_attention(query, key, value, 3)
