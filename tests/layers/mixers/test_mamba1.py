"""Mamba: the paper's recurrence, written out."""

from typing import Any

import torch
from torch import nn

from moe_hf import MambaWithMoEConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.mamba1 import Mamba1


def make(**fields: Any) -> Mamba1:
    config = MambaWithMoEConfig(
        hidden_size=6,
        num_attention_heads=1,
        num_hidden_layers=1,
        vocab_size=7,
        mamba_version=1,
        mamba_state_size=3,
        **fields,
    )
    torch.manual_seed(0)
    mixer = Mamba1(config, 0).double()
    mixer.draw_weights(0.3, 0.3)
    return mixer


@torch.no_grad()
def written_out(mixer: Mamba1, x_SD: torch.Tensor) -> torch.Tensor:
    """Gu and Dao 2023, eq. 2 with the discretisation of section 3.2, one token after the other."""
    taps = mixer.conv1d.weight.shape[-1]
    inner, rank, states = mixer.inner_width, mixer.rank, mixer.state_size
    window, state, out = torch.zeros(taps, inner).double(), torch.zeros(inner, states).double(), []
    for x_D in x_SD:
        new_I, gate_I = mixer.in_proj(x_D).chunk(2)
        window = torch.cat([window[1:], new_I[None]])
        u_I = nn.functional.silu((window * mixer.conv1d.weight[:, 0].T).sum(0) + mixer.conv1d.bias)
        step_R, b_N, c_N = mixer.x_proj(u_I).split([rank, states, states])
        delta_I = nn.functional.softplus(mixer.dt_proj(step_R))
        kept_IN = torch.exp(-delta_I[:, None] * mixer.A_log.exp())
        state = kept_IN * state + (delta_I * u_I)[:, None] * b_N
        out.append(mixer.out_proj((state @ c_N + mixer.D * u_I) * nn.functional.silu(gate_I)))
    return torch.stack(out)


def test_it_computes_the_equations_of_the_paper() -> None:
    mixer, x_BSD = make(), torch.randn(2, 9, 6).double()
    out_BSD = mixer(x_BSD, LayerInputs()).out_BSD
    for row in range(2):
        torch.testing.assert_close(out_BSD[row], written_out(mixer, x_BSD[row]), rtol=1e-5, atol=1e-6)


def test_norms_of_steps_inputs_and_outputs_are_heard() -> None:
    x_BSD = torch.randn(2, 9, 6).double()
    plain, normed = (make(**fields)(x_BSD, LayerInputs()).out_BSD for fields in ({}, {"mamba_bcdt_norm_eps": 1e-6}))
    assert (plain - normed).abs().max() > 1e-3
