"""The layers that are measured: transformers' compute the same."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.mixers.layers import KINDS, Layer, drawn, transformers_cache, transformers_layer
from tests.bench.measured import close

WIDTH, LENGTH = 64, 37


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_layer_with_a_cache_equals_the_whole_at_once(kind: str) -> None:
    layer, x_BSD = Layer(kind, WIDTH), drawn(LENGTH, WIDTH)
    with torch.no_grad():
        whole = layer(x_BSD)
        cache = layer.cache_after(x_BSD[:, :-2])
        parts = [layer(x_BSD[:, n : n + 1], cache) for n in (LENGTH - 2, LENGTH - 1)]
    assert whole.shape == (1, LENGTH, WIDTH)
    assert close(torch.cat(parts, dim=1), whole[:, -2:])


@pytest.mark.parametrize("kind", ["Mamba-1", "Mamba-2", "RWKV-4"])
def test_transformers_layer_has_the_same_weights(kind: str) -> None:
    layer, x_BSD = Layer(kind, WIDTH), drawn(LENGTH, WIDTH)
    assert close(transformers_layer(layer)(x_BSD), layer(x_BSD))


@pytest.mark.parametrize("kind", ["Mamba-1", "Mamba-2"])
@torch.no_grad()
def test_transformers_layer_decodes_the_same(kind: str) -> None:
    layer, x_BSD = Layer(kind, WIDTH), drawn(LENGTH, WIDTH)
    host, cache = transformers_layer(layer), transformers_cache(layer)
    host(x_BSD, cache)
    assert close(host(x_BSD[:, :1], cache), layer(x_BSD[:, :1], layer.cache_after(x_BSD)))


def test_transformers_has_no_such_layer() -> None:
    with pytest.raises(ConfigError, match="no layer like Retention"):
        transformers_layer(Layer("RetNet", WIDTH))
