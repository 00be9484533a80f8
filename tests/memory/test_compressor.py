"""Codes as good as principal components of everything, over a working set that knows its vectors."""

import numpy
import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.memory.compressor import StreamingCompressor


def clustered(count, dim=32, seed=0):
    random = numpy.random.default_rng(seed)
    centres = random.normal(size=(20, dim)) * numpy.linspace(2, 0.1, dim)
    return (centres[random.integers(20, size=count)] + 0.3 * random.normal(size=(count, dim))).astype(numpy.float32)


def lost(rows, rebuilt):
    return numpy.square(rows - rebuilt).sum() / numpy.square(rows - rows.mean(axis=0)).sum()


def test_codes_lose_hardly_more_than_principal_components_of_everything():
    rows = clustered(6000)
    compressor = StreamingCompressor(32, 8, capacity=512)
    for part in numpy.array_split(rows, 30):
        compressor.add(part)
    centred = rows - rows.mean(axis=0)
    basis = numpy.linalg.svd(centred, full_matrices=False)[2][:8]
    bound = lost(rows, rows.mean(axis=0) + centred @ basis.T @ basis)
    found = lost(rows, compressor.decode(compressor.encode(rows)))
    assert bound <= found <= 1.10 * bound
    assert compressor.explained_variance_ == pytest.approx(1 - found, abs=0.05)


def test_it_is_fitted_again_when_the_stream_changes():
    compressor = StreamingCompressor(32, 4, capacity=128)
    compressor.add(clustered(400))
    other = clustered(4000, seed=1)[:, ::-1].copy()
    before = lost(other, compressor.decode(compressor.encode(other)))
    for part in numpy.array_split(other, 20):
        compressor.add(part)
    assert lost(other, compressor.decode(compressor.encode(other))) < 0.8 * before


def test_the_working_set_holds_the_vectors_it_says():
    rows = clustered(1000)
    compressor = StreamingCompressor(32, 8, level_size=16)
    for part in numpy.array_split(rows, 7):
        compressor.add(part)
    assert compressor.working_set_size == len(compressor.places) < 16 * 7
    numpy.testing.assert_allclose(compressor.vectors(), rows[compressor.places], atol=0.05)
    assert compressor.compressed().shape == (compressor.working_set_size, 8)
    assert lost(compressor.vectors(), compressor.reconstruct()) < 0.5


def test_tensors_come_back_on_their_device_in_their_type():
    compressor = StreamingCompressor(32, 8)
    compressor.add(torch.from_numpy(clustered(100)).to(torch.bfloat16))
    code = compressor.encode(torch.ones(3, 32, dtype=torch.float16))
    assert code.dtype == torch.float16
    assert compressor.decode(code).shape == (3, 32)


def test_fewer_vectors_than_the_code_has_numbers_are_rebuilt_exactly():
    rows = clustered(4)
    compressor = StreamingCompressor(32, 8)
    compressor.add(rows)
    numpy.testing.assert_allclose(compressor.decode(compressor.encode(rows)), rows, atol=1e-4)


def test_heavy_vectors_outlast_others():
    compressor = StreamingCompressor(32, 8, level_size=8)
    compressor.add(clustered(2000), weights=numpy.where(numpy.arange(2000) % 400 == 3, 1e4, 1.0))
    assert {3, 403, 803, 1203, 1603} <= set(compressor.places.tolist())


def test_how_the_stream_comes_in_changes_nothing_and_a_steady_one_is_fitted_rarely(monkeypatch):
    fits = []
    whole_fit = StreamingCompressor.fit
    monkeypatch.setattr(StreamingCompressor, "fit", lambda self: fits.append(self.seen) or whole_fit(self))
    rows, found = clustered(1500), []
    for cuts in ([1500], [1] * 1500, [3, 700, 1, 796]):
        fits.clear()
        compressor, start = StreamingCompressor(32, 8, capacity=300, level_size=16), 0
        for size in cuts:
            compressor.add(rows[start : start + size])
            start += size
        assert len(fits) <= 12
        found.append((list(fits), compressor.encode(rows[:5]), compressor.places))
    for other in found[1:]:
        assert other[0] == found[0][0]
        numpy.testing.assert_allclose(other[1], found[0][1], atol=1e-4)
        numpy.testing.assert_array_equal(other[2], found[0][2])


def test_a_state_of_other_sizes_is_refused_and_changes_nothing():
    compressor, other = StreamingCompressor(32, 8), StreamingCompressor(16, 8)
    compressor.add(clustered(50))
    other.add(clustered(50)[:, :16])
    code = compressor.encode(clustered(3))
    with pytest.raises(ConfigError, match="other sizes"):
        compressor.load_state_dict(other.state_dict())
    numpy.testing.assert_array_equal(code, compressor.encode(clustered(3)))


def test_wrong_use_is_refused():
    with pytest.raises(ConfigError, match="compressed_dim=9"):
        StreamingCompressor(8, 9)
    compressor = StreamingCompressor(4, 2)
    for call in (compressor.fit, compressor.compressed, lambda: compressor.encode(numpy.ones(4))):
        with pytest.raises(ConfigError, match="add vectors first"):
            call()
    with pytest.raises(ConfigError, match="weights must be 1"):
        compressor.add(numpy.ones(4), weights=[-1.0])
    assert compressor.seen == 0
