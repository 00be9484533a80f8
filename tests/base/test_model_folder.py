import json

import numpy
import pytest
from safetensors.numpy import save_file

from moe_hf.base.model_folder import model_type_in, stored_parameters, weights_file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2_moe"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({"a": numpy.zeros((3, 4)), "b": numpy.zeros(5)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_whole_folder_says_what_it_is(folder) -> None:
    assert weights_file(folder) == folder / "model.safetensors"
    assert model_type_in(folder) == "gpt2_moe"
    assert stored_parameters(folder) == 17


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_no_model(folder, missing) -> None:
    (folder / missing).unlink()
    assert weights_file(folder) is None


def test_the_shards_of_an_index_are_counted_once_each(folder) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file({"c": numpy.zeros((2, 2))}, folder / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    index = {"weight_map": names | {"c": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_file(folder).name == "model.safetensors.index.json"
    assert stored_parameters(folder) == 21


def test_an_index_does_not_lead_out_of_its_folder(folder) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (inner / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    assert stored_parameters(inner) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": 3}', '{"a":' * 100_000])
def test_what_cant_be_read_is_not_known(folder, content) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(content)
    assert (model_type_in(folder), stored_parameters(folder)) == (None, None)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1, "b": "x", "c": []}}'])
def test_a_broken_index_is_not_counted(folder, content) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert stored_parameters(folder) is None


def test_codes_of_quantised_experts_are_counted_as_the_weights_that_they_are(folder) -> None:
    scales = numpy.zeros(7, dtype=numpy.float32)
    for dtype, count in ((numpy.int8, 24), (numpy.uint8, 48)):
        codes = numpy.zeros((2, 3, 4), dtype=dtype)
        save_file({"a": numpy.zeros(5), "e.up_codes": codes, "e.up_scales": scales}, folder / "model.safetensors")
        assert stored_parameters(folder) == 5 + count
