"""The tasks: what they ask for can be known from what came before, and only from it."""

import pytest
import torch

from moe_hf.bench.studies.recall.tasks import IGNORED, LENGTH, TASKS

VARIANTS = [(name, variant) for name, task in TASKS.items() for variant in task.variants]


def drawn(task: str, variant: str, num: int = 40, seed: int = 0):
    return TASKS[task].variants[variant](num, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("task", "variant"), VARIANTS)
def test_shapes_and_ids_are_as_said(task, variant):
    ids_NS, labels_NS = drawn(task, variant)
    assert ids_NS.shape == labels_NS.shape == (40, LENGTH)
    assert 0 <= ids_NS.min()
    assert ids_NS.max() < TASKS[task].vocab_size
    assert (labels_NS != IGNORED).any(dim=1).all()


@pytest.mark.parametrize("task", ["copying", "induction"])
def test_the_answer_is_the_next_token(task):
    ids_NS, labels_NS = drawn(task, TASKS[task].trained)
    asked_NS = labels_NS[:, :-1] != IGNORED
    assert labels_NS[:, :-1][asked_NS].equal(ids_NS[:, 1:][asked_NS])
    assert (labels_NS[:, -1] == IGNORED).all()


@pytest.mark.parametrize(("task", "variant"), VARIANTS)
def test_the_seed_decides_the_examples(task, variant):
    assert drawn(task, variant).ids_NS.equal(drawn(task, variant).ids_NS)
    assert not drawn(task, variant).ids_NS.equal(drawn(task, variant, seed=1).ids_NS)


@pytest.mark.parametrize("pairs", [2, 4, 8])
def test_every_key_behind_the_pairs_is_answered_by_its_value(pairs):
    ids_NS, labels_NS = drawn("mqar", f"{pairs} pairs")
    for ids, labels in zip(ids_NS.tolist(), labels_NS.tolist(), strict=True):
        value_of = dict(zip(ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
        assert len(value_of) == pairs
        assert [value_of[key] for key in ids[2 * pairs :]] == labels[2 * pairs :]
        assert set(labels[: 2 * pairs]) == {IGNORED}


def test_any_key_may_be_asked_for_at_any_time():
    ids_NS, _ = drawn("mqar", "4 pairs", num=400)
    which_NQP = ids_NS[:, 8:, None] == ids_NS[:, None, 0:8:2]
    assert which_NQP.float().mean(dim=0).sub(0.25).abs().max() < 0.1


def test_copying_asks_for_every_symbol_in_order():
    ids_NS, labels_NS = drawn("copying", "copied")
    answers_NQ = labels_NS[labels_NS != IGNORED].view(len(ids_NS), -1)
    assert answers_NQ.equal(ids_NS[:, : answers_NQ.shape[1]])
    assert answers_NQ.shape[1] == (LENGTH - 1) // 2


def test_induction_always_asks_for_what_followed_the_first_mark():
    mark = TASKS["induction"].vocab_size - 1
    ids_NS, labels_NS = drawn("induction", "induced")
    for ids, labels in zip(ids_NS.tolist(), labels_NS.tolist(), strict=True):
        first, *later = [place for place, token in enumerate(ids) if token == mark]
        assert {labels[place] for place in later} == {ids[first + 1]}
        assert labels[first] == IGNORED
        assert sum(label != IGNORED for label in labels) == len(later) == 3
