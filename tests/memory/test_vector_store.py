"""Search equals numpy's; files keep everything, of several processes too."""

import multiprocessing
import os
import signal

import numpy
import pytest
import torch

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.memory.vector_store import METRICS, VectorStore


def drawn(count, dim=8, seed=0):
    # Small whole numbers: many scores tie.
    return numpy.random.default_rng(seed).integers(-2, 3, size=(count, dim)).astype(numpy.float32)


def plain_scores(metric, query, rows):
    if metric == "l2":
        return -numpy.square(rows - query).sum(axis=1)
    product = rows @ query
    if metric == "dot":
        return product
    norm = numpy.linalg.norm(rows, axis=1) * numpy.linalg.norm(query)
    return numpy.divide(product, norm, out=numpy.zeros_like(product), where=norm > 0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 7, 300, 1000])
def test_search_equals_sorting_all_scores_the_newest_of_equals_first(metric, k):
    rows, queries = drawn(300), drawn(4, seed=1)
    store = VectorStore(8, metric=metric)
    for part in numpy.array_split(rows, 9):
        store.add(part, [{"n": int(row[0])} for row in part])
    for query, found in zip(queries, store.search(queries, k), strict=True):
        scores = plain_scores(metric, query, rows)
        if metric == "cosine":
            # Ties of a quotient are ties up to its last bit only.
            assert found.scores == pytest.approx(sorted(scores, reverse=True)[:k], abs=1e-6)
        else:
            expected = numpy.lexsort((-numpy.arange(300), -scores))[:k]
            assert found.ids == expected.tolist()
        numpy.testing.assert_array_equal(found.vectors, rows[found.ids])
        assert [each["n"] for each in found.metadata] == rows[found.ids][:, 0].astype(int).tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "dim"), [(101, 37), (1003, 37), (400, 7), (64, 129)])
def test_equal_vectors_come_the_newest_first_whatever_the_sizes(metric, count, dim):
    random = numpy.random.default_rng(count)
    rows = random.normal(size=(count, dim)).astype(numpy.float32)
    rows[::2] = rows[0]
    store = VectorStore(dim, metric=metric)
    store.add(rows)
    for query in (rows[0] + 0.01, random.normal(size=dim)):
        ids = [item for item in store.search(query, k=count).ids if item % 2 == 0]
        assert ids == sorted(ids, reverse=True)
        best = list(store.search(rows[0], k=9).ids)
        assert best == sorted(range(0, count, 2), reverse=True)[:9] or metric == "dot"


def test_distances_are_right_far_from_the_origin():
    rows = (1000 + numpy.random.default_rng(0).normal(size=(500, 16))).astype(numpy.float32)
    store = VectorStore(16, metric="l2")
    store.add(rows)
    exact = -numpy.square(rows.astype(numpy.float64) - rows[7]).sum(axis=1)
    found = store.search(rows[7], k=10)
    assert found.ids == numpy.argsort(-exact, kind="stable")[:10].tolist()
    assert found.scores == pytest.approx(sorted(exact, reverse=True)[:10], rel=1e-6, abs=1e-12)


def test_one_query_gives_one_answer_of_its_own_kind():
    store = VectorStore(8)
    store.add(drawn(5))
    found = store.search(torch.ones(8, dtype=torch.bfloat16), k=2)
    assert found.vectors.dtype == torch.bfloat16
    assert found.vectors.shape == (2, 8)
    assert VectorStore(8).search(numpy.ones(8)).ids == []


def test_filters_choose_before_the_ranking():
    store = VectorStore(8)
    store.add(drawn(50), [{"key": n % 5, "n": n} for n in range(50)])
    found = store.search(numpy.ones(8), k=50, where={"key": 3})
    assert sorted(found.ids) == list(range(3, 50, 5))
    found = store.search(numpy.ones(8), k=50, where=lambda each: each["n"] < 4)
    assert sorted(found.ids) == [0, 1, 2, 3]


def test_words_bring_up_what_vectors_do_not_know():
    store = VectorStore(4)
    texts = ["the cat sleeps", "door code 4417", "a red ball", "the old door"]
    store.add(numpy.eye(4), [{"text": text} for text in texts])
    query = numpy.array([1.0, 0.1, 0.2, 0.05])
    assert store.search(query, k=1).ids == [0]
    assert store.search(query, k=1, words="what is the code of the door?").ids == [1]
    # Without a word in common the vectors decide alone.
    assert store.search(query, k=4, words="xyz").ids == store.search(query, k=4).ids


def test_what_is_deleted_is_nowhere_and_ids_are_not_given_again(tmp_path):
    store = VectorStore(8, precision="int8")
    ids = store.add(drawn(6), [{"text": f"secret{n}"} for n in range(6)])
    assert store.delete([ids[2], ids[5], 99]) == 2
    assert len(store) == 4
    store.save(tmp_path / "s.npz")
    assert b"secret2" not in (tmp_path / "s.npz").read_bytes()
    again = VectorStore.load(tmp_path / "s.npz")
    assert again.search(numpy.ones(8), k=9, words="secret5 secret1").ids.count(5) == 0
    assert again.add(drawn(1)) == [6]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_loaded_store_answers_to_the_bit_as_before(tmp_path, precision):
    store = VectorStore(16, precision=precision, encoder="mine")
    rows = numpy.random.default_rng(0).normal(size=(200, 16)).astype(numpy.float32)
    store.add(rows, [{"text": f"number {n}"} for n in range(200)])
    store.save(tmp_path / "s.npz")
    again = VectorStore.load(tmp_path / "s.npz", dim=16, encoder="mine")
    before, after = (each.search(rows[7], k=20, words="number 9") for each in (store, again))
    assert before.ids == after.ids
    numpy.testing.assert_allclose(before.vectors, after.vectors, rtol=1e-6)
    assert (tmp_path / "s.npz").stat().st_size < 200 * 16 * 4 * (1 if precision == "int8" else 3)


def test_another_width_or_encoder_is_noticed(tmp_path):
    VectorStore(8, encoder="mine").save(tmp_path / "s.npz")
    with pytest.raises(CheckpointError, match="dim=8"):
        VectorStore.load(tmp_path / "s.npz", dim=9)
    with pytest.raises(CheckpointError, match="encoder='mine'"):
        VectorStore.load(tmp_path / "s.npz", encoder="other")


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="metric='cos'"):
        VectorStore(8, metric="cos")
    store = VectorStore(8)
    with pytest.raises(ConfigError, match="2 vectors with 1 metadata"):
        store.add(drawn(2), {"a": 1})
    with pytest.raises(ConfigError, match="k=0"):
        store.search(numpy.ones(8), k=0)
    store.add(drawn(1), {"a": object()})
    with pytest.raises(ConfigError, match="JSON"):
        store.save(tmp_path / "s.npz")
    assert not (tmp_path / "s.npz").exists()


def test_saving_over_another_process_entries_is_refused(tmp_path):
    mine, file = VectorStore(8), tmp_path / "s.npz"
    mine.add(drawn(1))
    mine.save(file)
    with VectorStore.changing(file, 8) as other:
        other.add(drawn(1))
    mine.add(drawn(1))
    with pytest.raises(CheckpointError, match="changed by another process"):
        mine.save(file)
    assert len(VectorStore.load(file)) == 2


def add_some(file, name):
    for n in range(10):
        with VectorStore.changing(file, 8, seconds=60) as store:
            store.add(drawn(1, seed=n), {"who": name})


def test_two_processes_lose_no_writes(tmp_path):
    file = tmp_path / "s.npz"
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=add_some, args=(file, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = VectorStore.load(file)
    assert sorted(each["who"] for each in found._metadata) == ["a"] * 10 + ["b"] * 10


def change_shortly(file):
    with VectorStore.changing(file, 8, seconds=0.1):
        pytest.fail("two at once")


def test_a_store_that_is_held_too_long_is_named(tmp_path):
    with (
        VectorStore.changing(tmp_path / "s.npz", 8),
        pytest.raises(CheckpointError, match="another process has held"),
    ):
        change_shortly(tmp_path / "s.npz")


def save_forever(file):
    store = VectorStore.load(file)
    while True:
        store.add(drawn(500), [{"text": "x" * 100}] * 500)
        store.save(file)


def test_a_kill_while_saving_loses_nothing_that_was_saved(tmp_path):
    file = tmp_path / "s.npz"
    store = VectorStore(8)
    store.add(drawn(500), [{"text": "kept"}] * 500)
    store.save(file)
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    for wait in (0.05, 0.11, 0.17, 0.23):
        worker = context.Process(target=save_forever, args=(file,))
        worker.start()
        worker.join(wait)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert VectorStore.load(file).search(numpy.ones(8), k=500, where={"text": "kept"}).ids != []
        assert sum(each["text"] == "kept" for each in VectorStore.load(file)._metadata) == 500
