"""RWKV-7's time mixing: the equations of the paper token by token, and the value that the first layer leaves."""

import pytest
import torch

from moe_hf import ConfigError, RWKVWithMoEConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.rwkv7 import RWKV7

B, S, D, H = 2, 37, 24, 3


def mixers(**overrides) -> list[RWKV7]:
    """Two layers in float64, every parameter away from where it starts."""
    fields = {"hidden_size": D, "num_attention_heads": H, "num_hidden_layers": 2, "mlp_layer_types": ["dense"] * 2}
    config = RWKVWithMoEConfig(**{**fields, **overrides})
    torch.manual_seed(0)
    made = []
    for layer in range(2):
        mixer = MIXERS["rwkv"](config, layer)
        assert isinstance(mixer, RWKV7)
        mixer.draw_weights(0.2, 0.2)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        made.append(mixer.double())
    return made


def run(mixer: RWKV7, x: torch.Tensor, value: torch.Tensor | None = None) -> MixerOutput:
    return mixer(x, LayerInputs(first_value=value))


def paper(mixer: RWKV7, x: torch.Tensor, first_value: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Peng et al. 2025, section 4.1, one row and one token after the other; the output and the layer's own values."""

    def project(name: str, row: torch.Tensor) -> torch.Tensor:
        return getattr(mixer, name).weight @ row

    def low_rank(name: str, row: torch.Tensor, middle=lambda z: z) -> torch.Tensor:
        lora = getattr(mixer, name)
        out = lora.up.weight @ middle(lora.down.weight @ row)
        return out if lora.up.bias is None else out + lora.up.bias

    outputs, values = torch.empty_like(x), torch.empty_like(x)
    for row in range(len(x)):
        state, before = torch.zeros(H, D // H, D // H, dtype=x.dtype), torch.zeros(D, dtype=x.dtype)
        for t, now in enumerate(x[row]):
            mixed = {name: now + (before - now) * getattr(mixer, f"x_{name}") for name in "rwkvag"}
            r, k, v = project("r_proj", mixed["r"]), project("k_proj", mixed["k"]), project("v_proj", mixed["v"])
            values[row, t] = v
            if first_value is not None:
                v = v + (first_value[row, t] - v) * torch.sigmoid(low_rank("v_lora", mixed["v"]))
            w = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(low_rank("w_lora", mixed["w"], torch.tanh)))
            a = torch.sigmoid(low_rank("a_lora", mixed["a"]))
            g = low_rank("g_lora", mixed["g"], torch.sigmoid)
            unit = k * mixer.k_k
            k = k * (1 + (a - 1) * mixer.k_a)
            out = torch.empty(D, dtype=x.dtype)
            for head in range(H):
                part = slice(head * D // H, (head + 1) * D // H)
                kappa = unit[part] / unit[part].norm()
                transition = torch.diag(w[part]) - torch.outer(kappa, kappa * a[part])
                state[head] = state[head] @ transition + torch.outer(v[part], k[part])
                read = state[head] @ r[part]
                read = (read - read.mean()) / (read.var(correction=0) + D // H * 1e-5).sqrt()
                read = read * mixer.g_norm.weight[part] + mixer.g_norm.bias[part]
                out[part] = read + (r[part] * k[part] * mixer.r_k[part]).sum() * v[part]
            outputs[row, t] = project("o_proj", out * g)
            before = now
    return outputs, values


@torch.no_grad()
def test_it_computes_the_equations_of_the_paper() -> None:
    first, second = mixers()
    x = torch.randn(2, B, S, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, value = paper(first, x[0], None)
    out = run(first, x[0])
    torch.testing.assert_close(out.out_BSD, expected, rtol=1e-5, atol=1e-6)
    expected, _ = paper(second, x[1], value)
    torch.testing.assert_close(run(second, x[1], out.first_value).out_BSD, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_long_inputs_in_stretches_give_the_same(monkeypatch) -> None:
    first, second = mixers()
    x = torch.randn(2, B, S, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def both() -> list[MixerOutput]:
        out = run(first, x[0])
        return [out, run(second, x[1], out.first_value)]

    expected = both()
    monkeypatch.setattr(RWKV7, "stretch_length", 8)
    for ours, theirs in zip(both(), expected, strict=True):
        torch.testing.assert_close(ours.out_BSD, theirs.out_BSD, rtol=1e-5, atol=1e-7)


def test_a_later_layer_uses_the_first_value() -> None:
    _, second = mixers()
    x = torch.randn(B, S, D, dtype=torch.float64)
    value = torch.randn(B, S, D, dtype=torch.float64, requires_grad=True)
    out = run(second, x, value)
    assert out.first_value is None
    (gradient,) = torch.autograd.grad(out.out_BSD.square().sum(), value)
    assert gradient.abs().min() > 0


def test_a_later_layer_without_the_first_value_is_an_error() -> None:
    _, second = mixers()
    with pytest.raises(ConfigError, match="layer 1 of RWKV-7 got no first_value"):
        run(second, torch.randn(B, S, D, dtype=torch.float64))


def test_fresh_weights_decay_as_the_paper_s_models_do() -> None:
    config = RWKVWithMoEConfig(hidden_size=128, num_attention_heads=2, num_hidden_layers=12)
    biases = []
    for layer in (0, 11):
        mixer = MIXERS["rwkv"](config, layer)
        mixer.draw_weights(0.02, 0.005)
        # Nothing depends on the token at first: the middle of each low-rank projection is zero.
        assert mixer.w_lora.down.weight.abs().max() == 0
        torch.testing.assert_close(mixer.o_proj.weight.std(), torch.tensor(0.005), rtol=0.1, atol=0)
        decay = torch.exp(-0.6065 * mixer.w_lora.up.bias.sigmoid())
        assert decay.max() > 0.99
        assert decay.min() < 0.7
        biases.append(decay.mean())
    # Later layers remember longer.
    assert biases[1] > biases[0]
