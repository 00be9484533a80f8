"""The Hyena family: its defaults, its classes, and words for its parts in a file."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_hf import HyenaWithMoE, HyenaWithMoEConfig, HyenaWithMoEForSequenceClassification, HyenaWithMoEModel
from moe_hf.layers.mixers.hyena import HyenaOperator
from tests.models.families import tiny_family


def test_every_layer_convolves_and_no_position_is_added() -> None:
    model = tiny_family("hyena")
    assert isinstance(model, HyenaWithMoE)
    assert all(isinstance(layer.mixer, HyenaOperator) for layer in model.model.layers)
    assert model.model.embed_positions is None
    assert model.model.rotary is None


@pytest.mark.parametrize("model_class", [HyenaWithMoEModel, HyenaWithMoE, HyenaWithMoEForSequenceClassification])
def test_all_classes_read_the_family_s_configuration(model_class) -> None:
    assert model_class.config_class is HyenaWithMoEConfig


def test_saved_and_loaded_it_reaches_as_far(tmp_path) -> None:
    model = tiny_family("hyena", num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is HyenaWithMoE
    ids = torch.randint(3, 61, (1, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert loaded(ids).logits.equal(model(ids).logits)
