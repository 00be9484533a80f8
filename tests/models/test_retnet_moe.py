"""The RetNet family has the shape of the paper's decoder."""

import torch

from moe_hf import RetNetWithMoE, RetNetWithMoEConfig


def test_a_decoder_of_the_paper_s_shape_is_built() -> None:
    config = RetNetWithMoEConfig(hidden_size=64, num_hidden_layers=2, num_heads=2, vocab_size=11, num_experts=2)
    with torch.device("meta"):
        names = dict(RetNetWithMoE(config).named_parameters())
    assert names["model.layers.0.mixer.v_proj.weight"].shape == (128, 64)
    assert names["model.layers.1.mlp.gate_proj.weight"].shape == (256, 64)
    # RMSNorm throughout: no bias but where a router has one.
    assert not [name for name in names if name.endswith("bias")]
