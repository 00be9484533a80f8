"""What is refused as the file of a store."""

import io
import json
import pickle
import zipfile

import numpy
import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.memory.store_file import VERSION, read_header, read_store, write_store


def header(**fields):
    return numpy.frombuffer(json.dumps({"format": "moe_hf.vector_store", "version": VERSION, **fields}).encode(), "u1")


def test_what_is_written_is_read_and_its_owners_alone(tmp_path):
    write_store(tmp_path / "a" / "s.npz", {"dim": 2}, {"rows": numpy.ones((1, 2))}, [{"text": "é"}])
    stored = read_store(tmp_path / "a" / "s.npz")
    assert stored.header["dim"] == 2
    assert stored.metadata == [{"text": "é"}]
    assert (tmp_path / "a" / "s.npz").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b"PK\x03\x04 cut off", "can't be read"),
        (pickle.dumps([1]), "can't be read"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_store(tmp_path / "s.npz")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    write_store(tmp_path / "s.npz", {}, {"rows": numpy.random.default_rng(0).normal(size=(40, 8))}, [{}] * 40)
    whole = (tmp_path / "s.npz").read_bytes()
    for size in range(1, len(whole), 97):
        (tmp_path / "s.npz").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_store(tmp_path / "s.npz")


def test_pickled_arrays_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([Bomb()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as parts:
        parts.writestr("rows.npy", buffer.getvalue())
    with pytest.raises(CheckpointError, match="can't be read"):
        read_store(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"version": VERSION + 1}, "update moe_hf"), ({"format": "other"}, "holds no vector store")],
)
def test_another_format_and_a_newer_version_are_refused_by_name(tmp_path, fields, message):
    with open(tmp_path / "s.npz", "wb") as stream:
        numpy.savez(stream, header=header(**fields), metadata=numpy.frombuffer(b"[]", "u1"))
    with pytest.raises(CheckpointError, match=message):
        read_store(tmp_path / "s.npz")


def test_a_file_that_unpacks_to_more_than_it_has_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("rows.npy", bytes(100_000))
    for read in (read_store, read_header):
        with pytest.raises(CheckpointError, match="would unpack"):
            read(tmp_path / "s.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no vector store at .*nosuch.npz"):
        read_store(tmp_path / "nosuch.npz")
