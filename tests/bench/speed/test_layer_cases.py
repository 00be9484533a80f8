"""A sparse layer and a block around it, with every backend."""

import pytest

from moe_hf.bench.speed.layer_cases import build_block, build_layer
from moe_hf.bench.speed.opponents import StockExperts
from tests.bench.measured import SIZE, measure


@pytest.mark.parametrize("build", [build_layer, build_block])
def test_layers_measure_transformers_own_loop_under_its_name(build, monkeypatch):
    called = []
    monkeypatch.setattr(StockExperts, "forward", _noting(StockExperts.forward, called))
    measure(build, SIZE, "forward", backends=("eager",))
    assert called


def _noting(forward, called):
    def noted(self, *given):
        called.append(type(self))
        # What the decorator of transformers wraps, which picks the backend.
        return forward(self, *given)

    return noted
