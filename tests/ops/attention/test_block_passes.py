"""The passes of block attention over one document: which blocks are chosen, and forms that agree."""

import pytest
import torch

from moe_hf.ops.attention import block_passes
from moe_hf.ops.attention.block_passes import (
    BlockOptions,
    Tensors,
    backward_pass,
    choose_blocks,
    forward_pass,
    num_choices,
)
from tests.ops.attention.cases import distance, normal

OPTIONS = BlockOptions(top_k=3.0, block_size=4, scale=0.5, softcap=2.0, dropout=0.0)


def document(queries: int = 11, keys: int = 22, heads: int = 2) -> Tensors:
    count_Q = torch.arange(keys - queries, keys) + 1
    shapes = (heads, 2, queries, 5), (heads, keys, 5), (heads, keys, 6)
    sink_ZH = normal(heads, 2, seed=8)
    return Tensors(*(normal(*shape, seed=seed) for seed, shape in enumerate(shapes)), count_Q, sink_ZH, None)


@pytest.mark.parametrize(
    ("top_k", "keys", "wanted"), [(1.0, 22, 1), (3.0, 22, 3), (9.0, 22, 6), (0.4, 22, 3), (3.0, 3, 1)]
)
def test_no_more_blocks_are_chosen_than_there_are(top_k: float, keys: int, wanted: int) -> None:
    assert num_choices(OPTIONS._replace(top_k=top_k), keys) == wanted


@pytest.mark.parametrize("few_gates", [0, 100])
@pytest.mark.parametrize("at_once", [1, 1 << 17])
def test_each_query_chooses_its_own_block_and_the_best_complete_ones_before(
    few_gates: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_passes, "_FEW_GATES", few_gates)
    monkeypatch.setattr(block_passes, "_PAIRS_AT_ONCE", at_once)
    tensors = document()
    chosen = choose_blocks(tensors, OPTIONS)
    mean = tensors.key_ZNC[:, :20].unflatten(1, (5, 4)).mean(dim=2)
    for head in range(2):
        for query, count in enumerate(tensors.count_Q.tolist()):
            own = (count - 1) // 4
            gate = mean[head, :own] @ tensors.query_ZHQC[head, 1, query]
            best = gate.argsort(descending=True)[:2].tolist()
            assert chosen[head, 1, query].tolist() == [own, *best]


def test_gathering_gives_what_going_from_block_to_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = document()
    gathered = forward_pass(tensors, OPTIONS)
    monkeypatch.setattr(block_passes, "_FEW_ROWS", 0)
    monkeypatch.setattr(block_passes, "_PAIRS_AT_ONCE", 20)
    in_blocks = forward_pass(tensors, OPTIONS)
    for one, other in zip(gathered, in_blocks, strict=True):
        assert distance(one.double(), other.double()) < 1e-12


def test_the_gradient_is_that_of_finite_differences() -> None:
    tensors, step = document(queries=3, keys=10), 1e-6
    result = forward_pass(tensors, OPTIONS)
    dout = normal(*result.out.shape, seed=5)
    gradients = backward_pass(dout, tensors, OPTIONS, result)
    for place in (0, 1, 2, 4):
        direction = normal(*tensors[place].shape, seed=6)
        name = Tensors._fields[place]
        ahead, behind = (
            forward_pass(tensors._replace(**{name: tensors[place] + sign * step * direction}), OPTIONS)
            for sign in (1, -1)
        )
        found = float(((ahead.out - behind.out) * dout).sum()) / (2 * step)
        assert found == pytest.approx(float((gradients[place if place < 3 else 3] * direction).sum()), rel=1e-6)
