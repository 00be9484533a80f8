"""What every mixer of the table is: same shape out, work that is counted."""

import pytest
import torch
from transformers import DynamicCache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.base import Mixer, MixerOutput


@pytest.fixture(params=list(MIXERS))
def mixer(request: pytest.FixtureRequest) -> Mixer:
    torch.manual_seed(0)
    config = MoEDecoderConfig(
        vocab_size=7,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        mixer=request.param,
        mamba_head_dim=8,
    )
    config._attn_implementation = "eager"
    mixer = MIXERS[request.param](config, 0)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def test_gives_the_shape_it_takes(mixer: Mixer) -> None:
    out = mixer(torch.randn(3, 5, 16), LayerInputs(position_ids=torch.arange(5)[None]))
    assert isinstance(out, MixerOutput)
    assert out.out_BSD.shape == (3, 5, 16)
    assert out.out_BSD.isfinite().all()


def test_names_its_output_projection(mixer: Mixer) -> None:
    linears = {name for name, child in mixer.named_modules() if isinstance(child, torch.nn.Linear)}
    assert set(mixer.output_projections) <= linears


def test_counts_work_beyond_its_weights(mixer: Mixer) -> None:
    assert 0 < mixer.multiply_adds(64) <= mixer.multiply_adds(128)


def test_has_room_for_a_short_text(mixer: Mixer) -> None:
    cache = DynamicCache(config=mixer.config)
    assert mixer.require_room(32, LayerInputs(cache=cache)) is None
