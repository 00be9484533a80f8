"""Both tiers together: everything is found, a little stays hot, files keep both."""

import numpy
import pytest
import torch

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.memory.hierarchical import HierarchicalMemory


def drawn(count, dim=16, seed=0):
    return numpy.random.default_rng(seed).normal(size=(count, dim)).astype(numpy.float32)


def filled(count=600):
    memory = HierarchicalMemory(16, 4, capacity=64, encoder="mine")
    for part in numpy.array_split(numpy.arange(count), 11):
        memory.add(drawn(count)[part], [{"text": f"fact {n}"} for n in part.tolist()])
    return memory


def test_the_archive_finds_every_fact_and_the_working_set_a_few():
    memory, rows = filled(), drawn(600)
    assert len(memory) == 600
    found = memory.search(torch.from_numpy(rows).to(torch.float64), k=1)
    assert [each.ids for each in found] == [[n] for n in range(600)]
    assert found[3].metadata == [{"text": "fact 3"}]
    assert found[3].vectors.dtype == torch.float64
    hot = memory.search_hot(rows, k=1)
    hits = [each.ids == [n] for n, each in enumerate(hot)]
    assert 0 < sum(hits) == memory.hot.working_set_size < 600
    assert hits[-1]


def test_a_loaded_memory_goes_on_as_if_it_had_never_stopped(tmp_path):
    memory = filled()
    memory.save(tmp_path / "memory")
    again = HierarchicalMemory.load(tmp_path / "memory", encoder="mine")
    for each in (memory, again):
        each.add(drawn(300, seed=1), [{"text": f"later {n}"} for n in range(300)])
    query = drawn(5, seed=2)
    assert memory.search(query)[0].ids == again.search(query)[0].ids
    assert memory.hot.places.tolist() == again.hot.places.tolist()
    numpy.testing.assert_array_equal(memory.hot.compressed(), again.hot.compressed())


def test_what_is_deleted_is_not_found_again(tmp_path):
    memory = filled(20)
    memory.delete([4])
    memory.save(tmp_path)
    assert HierarchicalMemory.load(tmp_path).search(drawn(20)[4], k=20).ids.count(4) == 0


def test_damaged_and_missing_tiers_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"archive.npz"):
        HierarchicalMemory.load(tmp_path)
    filled(20).save(tmp_path)
    whole = (tmp_path / "hot.npz").read_bytes()
    (tmp_path / "hot.npz").write_bytes(whole[:300])
    with pytest.raises(CheckpointError, match="working set"):
        HierarchicalMemory.load(tmp_path)
    (tmp_path / "hot.npz").unlink()
    with pytest.raises(CheckpointError, match="no working set"):
        HierarchicalMemory.load(tmp_path)
    with pytest.raises(CheckpointError, match="encoder"):
        HierarchicalMemory.load(tmp_path, encoder="other")


def test_two_tiers_of_different_widths_are_refused(tmp_path):
    filled(20).save(tmp_path)
    HierarchicalMemory(8, 4).save(tmp_path / "other")
    (tmp_path / "other" / "hot.npz").replace(tmp_path / "hot.npz")
    with pytest.raises(CheckpointError, match="dim=16 and a working set of 8"):
        HierarchicalMemory.load(tmp_path)


def test_a_refused_addition_leaves_both_tiers_alone():
    memory = HierarchicalMemory(16, 4)
    for call in (
        lambda: memory.add(drawn(2), weights=[1.0]),
        lambda: memory.add(drawn(2), weights=[1.0, -1.0]),
        lambda: memory.add(drawn(2), {"a": 1}),
        lambda: memory.add(drawn(2, dim=3)),
    ):
        with pytest.raises(ConfigError):
            call()
    assert len(memory) == memory.hot.seen == 0
