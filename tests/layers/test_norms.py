"""The norm that a configuration names, with its epsilon."""

import pytest
import torch
from torch import nn

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.norms import make_norm


@pytest.mark.parametrize(("kind", "expected"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm)])
def test_it_is_of_the_kind_the_width_and_the_epsilon_asked_for(kind: str, expected: type[nn.Module]) -> None:
    norm = make_norm(MoEDecoderConfig(hidden_size=24, num_attention_heads=2, norm_type=kind, layer_norm_epsilon=0.5))
    assert type(norm) is expected
    assert norm.weight.shape == (24,)
    # An epsilon of one half is heard.
    assert norm(torch.tensor([1.0, -1.0]).repeat(12))[0].item() == pytest.approx(1.5**-0.5)
