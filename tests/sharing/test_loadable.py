"""Weights that are not those of the model are found without reading them."""

import json

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from moe_hf import CheckpointError, GPT2WithMoEForSequenceClassification
from moe_hf.models.auto import FAMILIES
from moe_hf.quantization.directory import quantize_directory
from moe_hf.quantization.quantization_config import MoEQuantizationConfig
from moe_hf.sharing.loadable import require_loadable
from tests.models.families import KINDS, tiny_family
from tests.models.native_moes import NATIVE_MOES, native_moe

KIND_OF_FAMILY = {model_type: kind for kind, (model_type, _) in reversed(KINDS.items())}


@pytest.mark.parametrize("model_type", [*FAMILIES])
def test_every_family_passes(model_type, tmp_path):
    tiny_family(KIND_OF_FAMILY[model_type]).save_pretrained(tmp_path, max_shard_size="50KB")
    assert require_loadable(tmp_path) is None


@pytest.mark.parametrize("name", [*NATIVE_MOES])
def test_transformers_own_pass_whatever_the_names_in_their_files(name, tmp_path):
    native_moe(name).save_pretrained(tmp_path)
    assert require_loadable(tmp_path) is None


def without(tensors, name):
    del tensors[name]


def halved(tensors, name):
    tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()


@pytest.mark.parametrize("damage", [without, halved])
@pytest.mark.parametrize("native", [False, True])
def test_a_missing_or_misfitting_parameter_is_refused(damage, native, tiny_model, tmp_path):
    model = native_moe("mixtral") if native else tiny_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors, next(name for name in tensors if name.endswith("norm.weight")))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        require_loadable(tmp_path)


@pytest.mark.parametrize("native", [False, True])
def test_a_quantised_model_is_compared_too(native, tiny_model, tmp_path):
    model = native_moe("mixtral") if native else tiny_model()
    model.save_pretrained(tmp_path / "whole")
    quantize_directory(str(tmp_path / "whole"), tmp_path / "small", MoEQuantizationConfig(8))
    assert require_loadable(tmp_path / "small") is None
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("up_codes"))]
    save_file(tensors, tmp_path / "small" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="up_codes"):
        require_loadable(tmp_path / "small")


@pytest.mark.parametrize("change", [{"architectures": {"a": 1}}, {"architectures": [7]}, {"model_type": ["x"]}])
def test_names_that_are_none_are_refused(tiny_model, tmp_path, change):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=rf"has {next(iter(change))}=.*; write"):
        require_loadable(tmp_path)


def test_a_classifier_and_a_model_without_a_head_pass(tiny_model, tmp_path):
    tiny_model(GPT2WithMoEForSequenceClassification, num_labels=3).save_pretrained(tmp_path / "head")
    assert require_loadable(tmp_path / "head") is None
    tiny_model().model.save_pretrained(tmp_path / "none")
    assert require_loadable(tmp_path / "none") is None


def test_what_cannot_be_compared_is_said_and_runs_no_code(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    strange = {"architectures": ["Strange"], "auto_map": {"AutoModelForCausalLM": "c.Strange"}}
    (tmp_path / "c.py").write_text("open('ran', 'w').close()\n")
    (tmp_path / "config.json").write_text(json.dumps(config | strange))
    assert require_loadable(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(config | strange | {"model_type": "strange"}))
    assert require_loadable(tmp_path) == "neither transformers nor moe_hf has a class Strange"
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "other"}}))
    assert require_loadable(tmp_path) == "the weights are quantised"
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises((CheckpointError, ValueError), match="hidden_size"):
        require_loadable(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("hub_draws", [False, True])
def test_bars_are_drawn_afterwards_as_before(tiny_model, tmp_path, draws, hub_draws):
    tiny_model().save_pretrained(tmp_path)
    before = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    try:
        _set_bars(draws, hub_draws)
        require_loadable(tmp_path)
        assert (logging.is_progress_bar_enabled(), not are_progress_bars_disabled()) == (draws, hub_draws)
    finally:
        _set_bars(*before)


def _set_bars(draws, hub_draws):
    (logging.enable_progress_bar if draws else logging.disable_progress_bar)()
    (enable_progress_bars if hub_draws else disable_progress_bars)()


def test_the_check_makes_no_weights(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="meta")
    assert {value.device.type for value in model.parameters()} == {"meta"}
