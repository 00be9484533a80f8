"""Exact top-k attention: equal to its reference in value and gradient, to sdpa where k is large, in bounded memory."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention import topk_passes
from moe_hf.ops.attention.topk_attention import reference_topk_attention, topk_sparse_attention
from tests.ops.attention.cases import DOUBLE, distance, inputs, normal


def holey_mask() -> torch.Tensor:
    mask = torch.rand(2, 1, 13, 20, generator=torch.Generator().manual_seed(3)) > 0.3
    # A row that sees nothing.
    mask[0, :, 2] = False
    return mask


MASKS: dict[str, dict[str, Any]] = {
    "at the end of the keys": {},
    "at the first keys": {"query_start": 0},
    "not causal": {"causal": False},
    "window": {"window": 6},
    "softcap": {"softcap": 1.5},
    "bool mask": {"mask": holey_mask(), "causal": False},
    "bool mask besides causality": {"mask": holey_mask()},
    "float mask with least values": {"mask": torch.where(holey_mask(), 0.3, torch.finfo(torch.float32).min)},
    "float mask per head": {"mask": torch.where(holey_mask(), normal(2, 4, 13, 20, seed=4), -torch.inf)},
    "one mask row for all queries": {"mask": holey_mask()[:, :, :1], "causal": False},
}


def test_the_reference_is_a_softmax_over_the_k_largest_logits_of_each_row() -> None:
    query, key, value = (x.detach() for x in inputs(1, 1, 1, 4, 6))
    out, weight = reference_topk_attention(query, key, value, 3, scale=0.7)
    for row in range(4):
        seen = row + 3
        logits = {n: 0.7 * float(query[0, 0, row] @ key[0, 0, n]) for n in range(seen)}
        best = sorted(logits, key=lambda n: -logits[n])[:3]
        kept = torch.tensor([logits[n] for n in best], dtype=DOUBLE).softmax(dim=0)
        torch.testing.assert_close(out[0, 0, row], kept @ value[0, 0, best])
        assert int((weight[0, 0, row] > 0).sum()) == 3


@pytest.mark.parametrize("at_once", [1 << 22, 300])
@pytest.mark.parametrize("top_k", [1, 3, 0.3, 200])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_equals_the_reference_in_value_and_gradient(
    options: dict[str, Any], top_k: int | float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk_passes, "_SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(topk_passes, "_MIN_QUERIES", 3)
    tensors = inputs(2, 4, 2, 13, 20)
    sink = normal(4, seed=9).requires_grad_()
    out = topk_sparse_attention(*tensors, top_k, sink_H=sink, **options)
    wanted, _ = reference_topk_attention(*tensors, top_k, sink_H=sink, **options)
    assert distance(out, wanted) < 1e-12
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, [*tensors, sink], dout)
    for got, expected in zip(grads, torch.autograd.grad(wanted, [*tensors, sink], dout), strict=True):
        assert distance(got, expected) < 1e-12
    with torch.no_grad():
        assert distance(topk_sparse_attention(*tensors, top_k, sink_H=sink, **options), wanted) < 1e-12


@pytest.mark.parametrize(("queries", "keys"), [(1, 700), (65, 130), (150, 401)])
def test_few_of_many_keys_are_gathered_and_equal_the_reference(queries: int, keys: int) -> None:
    tensors = inputs(1, 4, 2, queries, keys, torch.float32)
    out, (wanted, _) = topk_sparse_attention(*tensors, 7), reference_topk_attention(*tensors, 7)
    assert distance(out, wanted) < 1e-6
    for got, expected in zip(
        torch.autograd.grad(out.square().sum(), tensors),
        torch.autograd.grad(wanted.square().sum(), tensors),
        strict=True,
    ):
        assert distance(got, expected) < 1e-5


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_k_of_all_keys_equals_sdpa(groups: int) -> None:
    query, key, value = (x.detach() for x in inputs(2, 4, groups, 33, 33, torch.float32))
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    for top_k in (33, 1000):
        assert distance(topk_sparse_attention(query, key, value, top_k), wanted) < 1e-6
    wanted = F.scaled_dot_product_attention(query[:, :, -1:], key, value, enable_gqa=True)
    assert distance(topk_sparse_attention(query[:, :, -1:], key, value, 33), wanted) < 1e-6


def test_gradcheck() -> None:
    tensors = [x.detach()[..., :3].clone().requires_grad_() for x in inputs(1, 2, 1, 4, 70)]
    sink = normal(2, seed=5).requires_grad_()

    def attend(*given: torch.Tensor) -> torch.Tensor:
        return topk_sparse_attention(*given[:3], 4, softcap=3.0, sink_H=given[3])

    assert torch.autograd.gradcheck(attend, (*tensors, sink), fast_mode=True)


def test_dropout_is_seeded_drops_its_share_and_has_the_gradient_of_what_it_kept() -> None:
    query, key, value = inputs(1, 2, 2, 40, 300)
    ones = torch.ones_like(value)

    def attend(*given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return topk_sparse_attention(*given, 9, dropout=0.25)

    assert attend(query, key, ones).equal(attend(query, key, ones))
    # Each output is the sum of the weights that were kept, each divided by the chance of being so.
    sums = attend(query, key, ones)[..., 0].detach()
    assert sums.std() > 0.1
    assert abs(float(sums.mean()) - 1) < 0.05
    small = [x.detach()[:, :, -6:].clone().requires_grad_() for x in (query, key, value)]
    assert torch.autograd.gradcheck(attend, small, fast_mode=True)


def test_a_row_that_sees_nothing_gives_zeros_and_finite_gradients() -> None:
    tensors = inputs(2, 4, 2, 13, 20)
    out = topk_sparse_attention(*tensors, 2, mask=holey_mask(), causal=False)
    assert out[0, :, 2].abs().max() == 0
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in tensors)


def test_half_precision_is_computed_in_float32() -> None:
    tensors = [x.detach().bfloat16() for x in inputs(2, 4, 2, 13, 20)]
    out = topk_sparse_attention(*tensors, 4)
    assert out.dtype == torch.bfloat16
    assert out.equal(topk_sparse_attention(*(x.float() for x in tensors), 4).bfloat16())


def test_compiles_forward_and_backward() -> None:
    tensors, mask = inputs(2, 4, 2, 13, 20), holey_mask()

    def loss(*given: torch.Tensor) -> torch.Tensor:
        return topk_sparse_attention(*given, 4, mask=mask).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(loss(*tensors), tensors)
    for got, expected in zip(torch.autograd.grad(compiled(*tensors), tensors), wanted, strict=True):
        assert got.equal(expected)


def test_the_compiler_is_told_the_strides_of_what_is_transposed() -> None:
    query = normal(2, 13, 4, 5).transpose(1, 2)
    key, value = normal(2, 20, 2, 5, seed=1).transpose(1, 2), normal(2, 20, 2, 6, seed=2).transpose(1, 2)
    given = (query, key, value, holey_mask(), normal(4), None, 3.0, True, 7, 0, 0.3, 0.0, 0.0)
    torch.library.opcheck(torch.ops.moe_hf.topk_attention.default, given, test_utils="test_faketensor")
    dout = normal(2, 13, 4, 6).transpose(1, 2)
    torch.library.opcheck(
        torch.ops.moe_hf.topk_attention_backward.default, (dout, *given), test_utils="test_faketensor"
    )


@pytest.mark.parametrize("top_k", [2, 0.2, 9])
def test_the_softcap_makes_no_logits_equal_before_the_choice(top_k: int | float) -> None:
    # In single precision, the cap rounds all of these logits to the same.
    key = torch.arange(40.0, 50.0)[torch.randperm(10, generator=torch.Generator().manual_seed(0))].view(1, 1, 10, 1)
    query, value = torch.full((1, 1, 1, 1), 5.0), key.clone()
    kept = {2: 2, 0.2: 2, 9: 9}[top_k]
    wanted = key.flatten().sort(descending=True).values[:kept].mean()
    options: dict[str, Any] = {"softcap": 2.0, "scale": 1.0}
    assert float(topk_sparse_attention(query, key, value, top_k, **options)) == pytest.approx(float(wanted))
    out, _ = reference_topk_attention(query, key, value, top_k, **options)
    assert float(out) == pytest.approx(float(wanted))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top_k": 0}, "top_k must be an integer >= 1 or a fraction"),
        ({"top_k": 1.5}, "got 1.5"),
        ({"top_k": True}, "got True"),
        ({"top_k": "3"}, "got '3'"),
        ({"top_k": [3]}, r"got \[3\]"),
        ({"top_k": 1.0}, "got 1.0; to keep all, which a fraction of 1.0 would mean, give an integer"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"window": 0}, "window must be None or an integer >= 1"),
        ({"query_start": -1}, "do not fit behind 20 keys"),
        ({"mask": torch.ones(2, 13, 20)}, "mask must be"),
        ({"mask": torch.ones(2, 1, 13, 19)}, r"got \(2, 1, 13, 19\)"),
        ({"mask": torch.zeros(2, 1, 13, 20, requires_grad=True)}, "must not require a gradient"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        topk_sparse_attention(*inputs(2, 4, 2, 13, 20), **{"top_k": 3, **options})
    query, key, value = inputs(2, 4, 3, 13, 20)
    with pytest.raises(ConfigError, match="4 query heads do not divide among 3"):
        topk_sparse_attention(query, key, value, 3)
