"""Retention: the paper's equations, its three forms, both published rotations, and what the layer keeps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from moe_hf import BackendUnavailableError, RetNetWithMoEConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.retention import Retention

B, S, D, H = 2, 13, 24, 3


def make_layer(seed: int = 0, **fields) -> Retention:
    config = RetNetWithMoEConfig(hidden_size=D, num_attention_heads=H, num_hidden_layers=2, vocab_size=7, **fields)
    torch.manual_seed(seed)
    layer = Retention(config, 0)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return layer


def draw(length: int = S, seed: int = 1) -> torch.Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(seed))


def run(layer: Retention, x_BSD: torch.Tensor, positions: torch.Tensor | None = None, **given) -> torch.Tensor:
    positions = torch.arange(x_BSD.shape[1])[None] if positions is None else positions
    return layer(x_BSD, LayerInputs(position_ids=positions, **given))[0]


def by_the_paper(layer: Retention, x_BSD: torch.Tensor, interleaved: bool, normed) -> torch.Tensor:
    """RetNet, eqs. 1 to 8, with complex numbers, head by head and token by token."""
    width = layer.key_width
    rows = []
    steps = torch.arange(width // 2)
    theta = 10000.0 ** -(steps / (width // 2 - 1) if interleaved else 2 * steps / width)
    for x_SD in x_BSD:
        turn_SP = torch.polar(torch.ones(1), torch.arange(len(x_SD))[:, None] * theta)
        heads = []
        for h in range(layer.heads):
            parts = [proj(x_SD).unflatten(-1, (layer.heads, -1))[:, h] for proj in (layer.q_proj, layer.k_proj)]
            pairs = [x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).mT for x in parts]
            query, key = (torch.view_as_complex(pair.contiguous()) * turn_SP for pair in pairs)
            value = layer.v_proj(x_SD).unflatten(-1, (layer.heads, -1))[:, h]
            gamma, out = 1 - 2.0 ** (-5 - h), torch.zeros_like(value)
            for n in range(len(x_SD)):
                for m in range(n + 1):
                    # Theta on queries and its conjugate on keys: the real part of the product.
                    out[n] += gamma ** (n - m) * (query[n] * key[m].conj()).real.sum() * value[m] / width**0.5
            heads.append(normed(out))
        gate = F.silu(layer.g_proj(x_SD))
        rows.append(layer.o_proj(gate * torch.cat(heads, dim=-1)))
    return torch.stack(rows)


def test_is_the_paper_with_half_rotation_and_rms() -> None:
    layer, x = make_layer(), draw()
    with torch.no_grad():
        expected = by_the_paper(
            layer,
            x,
            False,
            lambda out: out * (out.square().mean(-1, keepdim=True) + 1e-6) ** -0.5 * layer.g_norm.weight,
        )
        torch.testing.assert_close(run(layer, x), expected, rtol=1e-4, atol=1e-5)


def test_is_the_paper_with_interleaved_rotation_and_layer_norm_as_torchscale_has_it() -> None:
    fields = {"retention_rotation": "interleaved", "retention_norm": "layer", "retention_norm_affine": False}
    layer, x = make_layer(retention_bias=True, **fields), draw()
    assert not list(layer.g_norm.parameters())
    with torch.no_grad():
        expected = by_the_paper(layer, x, True, lambda out: F.layer_norm(out, out.shape[-1:], eps=1e-6))
        torch.testing.assert_close(run(layer, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize("fields", [{}, {"retention_rotation": "none", "retention_gate": False}])
def test_the_forms_agree_in_values_and_gradients(form: str, fields: dict) -> None:
    found = []
    mask, starts = torch.ones(B, 70, dtype=torch.long), torch.zeros(B, 70, dtype=torch.bool)
    mask[0, 60:] = mask[1, :9] = 0
    starts[1, 40] = True
    for name in ("chunkwise", form):
        layer, x = make_layer(retention_form=name, **fields), draw(70).requires_grad_()
        out = run(layer, x, padding_mask=mask, document_starts=starts) * mask[..., None]
        gradients = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        found.append([out, *gradients])
    for mine, other in zip(*found, strict=True):
        assert (mine - other).norm() <= 1e-4 * other.norm()


def test_only_distances_between_positions_count() -> None:
    layer, x = make_layer(), draw()
    with torch.no_grad():
        there = run(layer, x, torch.arange(S)[None] + 1000)
        torch.testing.assert_close(run(layer, x), there, rtol=1e-3, atol=1e-4)
        assert (run(layer, x, 2 * torch.arange(S)[None]) - there).abs().max() > 1e-2


def test_the_rotation_is_computed_once_for_all_layers() -> None:
    layer, x, shared = make_layer(), draw(), {}
    with torch.no_grad():
        expected = run(layer, x, shared_values=shared)
        assert {value.dtype for rotation in shared.values() for value in rotation} == {torch.float32}
        torch.testing.assert_close(run(layer, x, torch.zeros(1, S), shared_values=shared), expected)


def test_long_inputs_without_gradients_are_worked_through_in_pieces(monkeypatch) -> None:
    layer, x = make_layer(), draw(40)
    mask, starts = torch.ones(B, 40, dtype=torch.long), torch.zeros(B, 40, dtype=torch.bool)
    mask[0, 10:20] = 0
    starts[1, 17] = True
    kwargs = {"padding_mask": mask, "document_starts": starts}
    expected = run(layer, x, **kwargs).detach()
    monkeypatch.setattr(Retention, "stretch_length", 16)
    lengths = []
    layer.q_proj.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        torch.testing.assert_close(run(layer, x, **kwargs)[mask.bool()], expected[mask.bool()])
    assert lengths == [16, 16, 8]


def test_widths_follow_the_expansions() -> None:
    layer = make_layer(retention_expand_k=0.5, retention_expand_v=1.25, retention_num_heads=2)
    assert layer.q_proj.weight.shape == layer.k_proj.weight.shape == (12, D)
    assert layer.v_proj.weight.shape == layer.g_proj.weight.shape == (30, D)
    assert layer.g_norm.weight.shape == (15,)
    assert run(layer, draw()).shape == (B, S, D)
    assert layer.multiply_adds(1000) == 2 * 2 * 6 * 15


@pytest.mark.parametrize("gate", [True, False])
def test_names_are_those_of_flash_linear_attention(gate: bool) -> None:
    names = {name.rsplit(".", 1)[0] for name, _ in make_layer(retention_gate=gate).named_parameters()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "g_norm", *(["g_proj"] if gate else [])}


def test_half_precision_keeps_its_type_and_the_state_in_float32() -> None:
    config = RetNetWithMoEConfig(hidden_size=D, num_attention_heads=H, num_hidden_layers=1, vocab_size=7)
    layer, cache = Retention(config, 0).bfloat16(), DynamicCache(config=config)
    out = run(layer, draw().bfloat16(), cache=cache)
    assert out.dtype == torch.bfloat16
    assert cache.layers[0].read("retention").dtype == torch.float32
    assert cache.layers[0].read("retention").shape == (B, H, 8, 16)


def test_norms_have_the_configured_epsilon() -> None:
    assert isinstance(make_layer().g_norm, nn.RMSNorm)
    assert make_layer(layer_norm_epsilon=0.5).g_norm.eps == 0.5


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
def test_forms_that_no_kernel_computes_look_for_none(form: str) -> None:
    x = draw()
    with pytest.raises(BackendUnavailableError, match="runs on CUDA only"):
        run(make_layer(mixer_backend="fla"), x)
    expected = run(make_layer(), x)
    torch.testing.assert_close(run(make_layer(mixer_backend="fla", retention_form=form), x), expected)


def test_the_compiler_takes_our_own_code_whatever_package_is_named() -> None:
    layer, x = make_layer(mixer_backend="fla"), draw()
    compiled = torch.compile(lambda x_BSD: run(layer, x_BSD), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), run(make_layer(), x))
