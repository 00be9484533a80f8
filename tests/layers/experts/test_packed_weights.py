"""Packed experts equal the reference, serve inference alone, and go when the weights change."""

import pytest
import torch
from torch import nn

from moe_hf.base.errors import ConfigError
from moe_hf.layers.experts.packed_weights import pack_for_inference, unpack
from tests.layers.experts.any_experts import T, make, routes, tokens_for


@pytest.fixture
def experts() -> nn.Module:
    experts = make("sorted", "gelu_new", torch.float32, gated=False, transposed=True, biased=True)
    pack_for_inference(experts)
    return experts


def count_products_with_packed(experts: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from moe_hf.layers.experts import backends as experts_backends

    calls = []
    original = experts_backends.packed_experts

    def counted(*arguments) -> torch.Tensor:
        calls.append(len(arguments[0]))
        return original(*arguments)

    monkeypatch.setattr(experts_backends, "packed_experts", counted)
    return calls


@pytest.mark.parametrize("tokens", [T, 1, 0])
@pytest.mark.parametrize(("act", "gated"), [("gelu_new", False), ("relu2", False), ("silu", True)])
def test_equal_the_reference(tokens: int, act: str, gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {"gated": gated, "transposed": False, "biased": True}
    experts, reference = (make(name, act, torch.float32, **layout) for name in ("sorted", "eager"))
    calls = count_products_with_packed(experts, monkeypatch)
    pack_for_inference(experts)
    x, (expert, weight) = tokens_for(tokens=tokens), routes(tokens > 0, tokens)
    with torch.no_grad():
        torch.testing.assert_close(experts(x, expert, weight), reference(x, expert, weight))
    assert calls == [tokens]


def test_serve_inference_only(experts: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_products_with_packed(experts, monkeypatch)
    experts(tokens_for(), *routes(skips=False)).sum().backward()
    assert calls == []
    assert experts.up_proj.grad.abs().max() > 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        experts(tokens_for(), *routes(skips=False))
    assert calls == []


def test_go_when_unpacked_or_when_the_weights_change(experts, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_products_with_packed(experts, monkeypatch)
    arguments = (tokens_for(), *routes(skips=False))
    with torch.no_grad():
        experts.down_proj_bias.add_(1)
        changed = experts(*arguments)
        assert calls == []
        pack_for_inference(experts)
        torch.testing.assert_close(experts(*arguments), changed)
        assert calls == [T]
        unpack(experts)
        unpack(experts)
        experts(*arguments)
    assert calls == [T]


def test_are_never_saved_or_copied(experts: nn.Module) -> None:
    import copy
    import pickle

    assert set(experts.state_dict()) == {"up_proj", "up_proj_bias", "down_proj", "down_proj_bias"}
    assert set(vars(copy.deepcopy(experts))) == set(vars(make("sorted", "gelu", torch.float32, False, True, True)))
    assert len(pickle.dumps(experts.state_dict())) < 3 * sum(p.nbytes for p in experts.parameters())


def test_are_refused_where_they_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {"gated": False, "transposed": False, "biased": True}
    with pytest.raises(ConfigError, match=r"only float32 and bfloat16 weights on a CPU.*float16 on 'cpu'"):
        pack_for_inference(make("sorted", "gelu", torch.float16, **layout))
    with pytest.raises(ConfigError, match=r"float32 on 'meta'"):
        pack_for_inference(make("sorted", "gelu", torch.float32, **layout).to("meta"))
    with pytest.raises(ConfigError, match="activation that packed experts do not know"):
        pack_for_inference(make("sorted", "tanh", torch.float32, **layout))
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
        pack_for_inference(make("sorted", "gelu", torch.float32, **layout))
    monkeypatch.setattr("moe_hf.ops.experts.packed.onednn_available", lambda dtype: False)
    with pytest.raises(ConfigError, match=r"multiplies torch.float32 with oneDNN on this CPU"):
        pack_for_inference(make("sorted", "gelu", torch.float32, **layout))
