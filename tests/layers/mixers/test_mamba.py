"""Mamba's mixers by themselves: fresh weights, half precision, adapters, and what they keep."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from moe_hf import BackendUnavailableError, MambaWithMoE, MambaWithMoEConfig
from moe_hf.layers.caches.states import states_of
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.mamba import DepthwiseConv1d

B, S, D = 2, 13, 24
SHAPE: dict[str, Any] = {"hidden_size": D, "num_hidden_layers": 1, "vocab_size": 31, "mamba_head_dim": 8}


def make_mixer(version: int, **fields: Any) -> tuple[MambaWithMoEConfig, Any]:
    """A mixer with fresh weights as a model draws them, but larger taps and outputs."""
    torch.manual_seed(0)
    config = MambaWithMoEConfig(**{**SHAPE, "mamba_version": version, "mamba_state_size": 5, **fields})
    mixer = MambaWithMoE(config).eval().model.layers[0].mixer
    nn.init.normal_(mixer.in_proj.weight, std=0.3)
    nn.init.normal_(mixer.out_proj.weight, std=0.3)
    return config, mixer


def mix(mixer: Any, x_BSD: torch.Tensor, cache: DynamicCache | None = None, **given: Any) -> torch.Tensor:
    return mixer(x_BSD, LayerInputs(cache=cache, **given))[0]


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def x_BSD() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(1))


def test_fresh_step_sizes_lie_between_the_bounds(version: int) -> None:
    bounds = {"mamba_time_step_min": 0.02, "mamba_time_step_max": 0.03}
    _, mixer = make_mixer(version, **bounds)
    steps = nn.functional.softplus(mixer.dt_proj.bias if version == 1 else mixer.dt_bias)
    assert steps.min() >= 0.02 - 1e-6
    assert steps.max() <= 0.03 + 1e-6
    assert steps.std() > 0


def test_fresh_rates_are_whole_numbers(version: int) -> None:
    _, mixer = make_mixer(version)
    torch.testing.assert_close(mixer.A_log.exp()[..., -1].max(), torch.tensor([5.0, 6.0][version - 1]))
    torch.testing.assert_close(mixer.A_log.exp().min(), torch.tensor(1.0))


def test_autocast_stays_near_single_precision(version: int, x_BSD: torch.Tensor) -> None:
    _, mixer = make_mixer(version)
    exact = mix(mixer, x_BSD)
    with torch.autocast("cpu", torch.bfloat16):
        half = mix(mixer, x_BSD)
    assert half.dtype == torch.bfloat16
    assert (half - exact).norm() <= 2e-2 * exact.norm()


def test_the_convolution_is_that_of_torch_in_values_and_in_layout() -> None:
    ours = DepthwiseConv1d(D, 4, bias=True)
    theirs = nn.Conv1d(D, D, 4, groups=D)
    theirs.load_state_dict(ours.state_dict())
    x_BCL = torch.randn(B, D, S, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x_BCL), theirs(x_BCL))


class Adapter(nn.Module):
    """A linear layer or a convolution with something added, as LoRA does it."""

    def __init__(self, base: nn.Linear | nn.Conv1d) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 0.5


@pytest.mark.parametrize("name", ["in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"])
def test_an_adapter_around_a_part_is_heard(version: int, name: str, x_BSD: torch.Tensor) -> None:
    _, mixer = make_mixer(version)
    if name not in dict(mixer.named_children()):
        pytest.skip("Mamba-2 projects once")
    before = mix(mixer, x_BSD)
    setattr(mixer, name, Adapter(getattr(mixer, name)))
    assert (mix(mixer, x_BSD) - before).abs().max() > 1e-4


class Quantised(nn.Module):
    """A linear layer with integers for weights, which computes in the dtype of its bias, as bitsandbytes' do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.scale = base.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((base.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype if self.bias is None else self.bias.dtype
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias).to(dtype)


@pytest.mark.parametrize("kind", ["single", "half", "autocast"])
def test_integers_for_weights_change_little(version: int, kind: str, x_BSD: torch.Tensor) -> None:
    _, mixer = make_mixer(version)
    exact = mix(mixer, x_BSD)
    for name, module in list(mixer.named_children()):
        if isinstance(module, nn.Linear):
            setattr(mixer, name, Quantised(module))
    if kind == "half":
        mixer, x_BSD = mixer.to(torch.bfloat16), x_BSD.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        ours = mix(mixer, x_BSD)
    assert (ours - exact).norm() <= 4e-2 * exact.norm()


def test_convolution_and_scan_agree_that_no_document_begins_at_padding(version: int, x_BSD: torch.Tensor) -> None:
    _, mixer = make_mixer(version)
    mask = torch.ones(B, S, dtype=torch.long)
    mask[0, 4:6] = mask[1, 8] = 0
    starts = torch.zeros(B, S, dtype=torch.bool)
    starts[0, 9] = True
    expected = mix(mixer, x_BSD, padding_mask=mask, document_starts=starts)
    starts[0, 5] = starts[1, 8] = True
    torch.testing.assert_close(
        mix(mixer, x_BSD, padding_mask=mask, document_starts=starts)[mask != 0], expected[mask != 0]
    )


def test_a_step_leaves_the_states_of_the_step_before_alone(version: int, x_BSD: torch.Tensor) -> None:
    config, mixer = make_mixer(version)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        mix(mixer, x_BSD, cache)
        states = states_of(cache, 0)
        assert states is not None
        kept = dict(states.states)
        copies = {name: state.clone() for name, state in kept.items()}
        mix(mixer, x_BSD[:, :1], cache)
        for name, state in kept.items():
            assert torch.equal(state, copies[name])
            assert not torch.equal(state, states.states[name])


def test_what_is_kept_does_not_grow(version: int, x_BSD: torch.Tensor) -> None:
    config, mixer = make_mixer(version)
    sizes = []
    for length in (5, S):
        cache = DynamicCache(config=config)
        with torch.no_grad():
            mix(mixer, x_BSD[:, :length], cache)
        states = states_of(cache, 0)
        assert states is not None
        sizes.append([state.untyped_storage().nbytes() for state in states.states.values()])
    assert sizes[0] == sizes[1]


def test_states_are_in_single_precision_in_a_half_precision_model(version: int, x_BSD: torch.Tensor) -> None:
    config, mixer = make_mixer(version)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        for piece in (x_BSD, x_BSD[:, :1]):
            assert mix(mixer.to(torch.bfloat16), piece.bfloat16(), cache).dtype == torch.bfloat16
            states = states_of(cache, 0)
            assert states is not None
            assert states.states["scan"].dtype == torch.float32


def test_a_package_asked_for_by_name_is_refused_without_a_gpu(version: int, x_BSD: torch.Tensor) -> None:
    _, mixer = make_mixer(version, mixer_backend="mamba_ssm")
    with pytest.raises(BackendUnavailableError, match="mixer_backend='mamba_ssm' cannot be used"):
        mix(mixer, x_BSD)


def test_the_table_knows_both_versions(version: int) -> None:
    config = MambaWithMoEConfig(**SHAPE, mamba_version=version)
    assert type(MIXERS["mamba"](config, 0)).__name__ == f"Mamba{version}"
