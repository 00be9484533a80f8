"""Mamba-2: the gated norm and the bounds of its steps."""

from typing import Any

import torch
from torch import nn

from moe_hf import MambaWithMoEConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.mamba2 import GatedRMSNorm, Mamba2


def make(**fields: Any) -> Mamba2:
    shape = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 7, "mamba_head_dim": 4}
    torch.manual_seed(0)
    mixer = Mamba2(MambaWithMoEConfig(**shape, mamba_state_size=3, **fields), 0)
    mixer.draw_weights(0.3, 0.3)
    return mixer


def test_the_norm_gates_first_and_norms_within_groups() -> None:
    norm = GatedRMSNorm(6, num_groups=2, eps=1e-5)
    nn.init.normal_(norm.weight)
    x, gate = torch.randn(2, 3, 5, 6)
    gated = (x * nn.functional.silu(gate)).view(3, 5, 2, 3)
    expected = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x, gate), norm.weight * expected.view(3, 5, 6))


def test_steps_stay_within_their_limits() -> None:
    x_BSD = torch.randn(2, 9, 8)
    free, limited = make(), make(mamba_time_step_limit=[0.5, 0.5])
    assert not torch.allclose(limited(x_BSD, LayerInputs()).out_BSD, free(x_BSD, LayerInputs()).out_BSD)
    # All steps are one half then, whatever their biases.
    expected = limited(x_BSD, LayerInputs()).out_BSD
    nn.init.normal_(limited.dt_bias)
    torch.testing.assert_close(limited(x_BSD, LayerInputs()).out_BSD, expected)
