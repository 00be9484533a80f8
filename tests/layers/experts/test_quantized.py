"""Any experts module is quantised where it stands: it computes, is copied and is refused as it should."""

import copy
import pickle

import pytest
import torch
from torch import nn

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.layers.experts.experts import Experts
from moe_hf.layers.experts.packed_weights import pack_for_inference
from moe_hf.layers.experts.quantized import (
    BUFFERS,
    IMPLEMENTATIONS,
    QuantizedExperts,
    align,
    dequantize_module,
    expect_quantized,
    experts_modules,
    quantize_weight,
    quantized_class,
    require_shapes,
    weight_names,
)
from tests.layers.experts.any_experts import D, make, routes, tokens_for
from tests.models.families import tiny_family


def quantise(module: nn.Module, bits: int = 8, group_size: int | None = None) -> nn.Module:
    for name in weight_names(module):
        quantize_weight(module, name, module._parameters[name].detach(), bits, group_size)
    return module


def result(module: nn.Module, backend: str = "auto", skips: bool = False) -> torch.Tensor:
    module.config._experts_implementation = backend
    with torch.no_grad():
        return module(tokens_for(), *routes(skips))


@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("transposed", [False, True], ids=["EFD", "EDF"])
@pytest.mark.parametrize(("act", "gated"), [("gelu_new", False), ("silu", True)])
def test_every_layout_stays_near_its_numbers_and_comes_back(act, gated, transposed, biased) -> None:
    module = make("sorted", act, torch.float32, gated=gated, transposed=transposed, biased=biased)
    own_class = type(module)
    for skips in (False, True):
        expected = result(module, "sorted", skips)
        quantised = quantise(copy.deepcopy(module))
        assert isinstance(quantised, own_class)
        for backend in IMPLEMENTATIONS:
            found = result(quantised, backend, skips)
            assert 0 < (found - expected).norm() < 0.03 * expected.norm()
    eager = result(quantised, "eager")
    dequantize_module(quantised, torch.float32)
    assert type(quantised) is own_class
    assert not quantised._buffers
    assert {name: p.shape for name, p in quantised.named_parameters()} == {
        name: p.shape for name, p in module.named_parameters()
    }
    torch.testing.assert_close(result(quantised, "sorted"), eager)


@pytest.fixture
def experts() -> nn.Module:
    return next(iter(experts_modules(tiny_family("llama")).values()))


def test_the_words_for_kernels_that_need_numbers_are_refused(experts) -> None:
    quantise(experts)
    x, (expert, weight) = torch.randn(3, 32), routes(False, 3)
    for name in ("triton", "scattermoe", "sonicmoe"):
        experts.config._experts_implementation = name
        with pytest.raises(ConfigError, match=rf"experts_implementation='{name}' needs weights as numbers.*use one of"):
            experts(x, expert, weight)
    experts.config._experts_implementation = "nothing"
    with pytest.raises(KeyError):
        experts(x, expert, weight)


def test_its_numbers_are_missed_in_a_sentence(experts) -> None:
    quantise(experts)
    for name in weight_names(experts):
        assert not hasattr(experts, name)
    with pytest.raises(ConfigError, match=r"QuantizedExperts has no gate_up_proj as numbers.*model\.dequantize\(\)"):
        pack_for_inference(experts)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = experts.nonsense


def test_it_is_copied_and_pickled(experts) -> None:
    quantise(experts)
    x, chosen = torch.randn(3, 32), routes(False, 3)
    with torch.no_grad():
        expected = experts(x, *chosen)
        for copied in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
            assert type(copied) is type(experts) is quantized_class(Experts)
            assert torch.equal(copied(x, *chosen), expected)
            assert list(copied.state_dict()) == list(experts.state_dict())


def test_empty_ones_take_the_state_of_whole_ones(experts) -> None:
    for bits, group_size in ((8, None), (4, 32)):
        whole, empty = copy.deepcopy(experts), copy.deepcopy(experts).to("meta")
        # Its inner width is no multiple of 32.
        if bits == 4:
            with pytest.raises(ConfigError, match="rows of 48 weights are no whole groups"):
                expect_quantized(empty, bits, group_size)
            continue
        quantise(whole, bits, group_size)
        expect_quantized(empty, bits, group_size)
        require_shapes("experts", whole, bits, group_size)
        empty.load_state_dict(whole.state_dict(), assign=True)
        x, chosen = torch.randn(3, 32), routes(False, 3)
        with torch.no_grad():
            assert torch.equal(empty(x, *chosen), whole(x, *chosen))


def test_another_format_than_it_is_said_to_be_is_refused(experts) -> None:
    quantise(experts)
    with pytest.raises(CheckpointError, match=r"x\.up_codes is torch.int8 of \(4, 96, 32\), and the configuration"):
        require_shapes("x", experts, 4, 32)
    experts.down_codes = experts.down_codes[:, :-1]
    with pytest.raises(CheckpointError, match=r"x\.down_codes is torch.int8 of \(4, 31, 48\), and the configuration"):
        require_shapes("x", experts, 8, None)


def test_codes_at_an_odd_byte_are_moved(experts) -> None:
    quantise(experts)
    codes = experts.up_codes
    odd = torch.empty(codes.numel() + 1, dtype=torch.int8)[1:].view_as(codes).copy_(codes)
    experts._buffers["up_codes"] = odd
    align(experts)
    assert experts.up_codes.data_ptr() % 32 == 0
    assert torch.equal(experts.up_codes, odd)
    kept = experts.up_codes.data_ptr()
    align(experts)
    assert experts.up_codes.data_ptr() == kept


def test_only_stacks_that_transformers_knows_are_found() -> None:
    model = tiny_family("gpt2")
    found = experts_modules(model)
    assert [type(module) for module in found.values()] == [Experts] * len(found)
    assert len(found) == len(model.config.sparse_layers)
    assert not any(isinstance(module, QuantizedExperts) for module in found.values())
    assert D == 16
    assert BUFFERS == ("up_codes", "up_scales", "down_codes", "down_scales")
