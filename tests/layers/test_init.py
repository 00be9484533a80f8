"""Modules that draw their own weights leave loaded ones alone."""

import pytest
import torch
from torch import nn
from transformers import initialization as init

from moe_hf.layers.init import DrawsOwnWeights


class Marked(nn.Module, DrawsOwnWeights):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def draw_weights(self, std: float, residual_std: float) -> None:
        init.constant_(self.weight, std)


def test_what_was_loaded_is_not_drawn_anew() -> None:
    fresh, loaded = Marked(), Marked()
    loaded.weight._is_hf_initialized = True
    for module in (fresh, loaded):
        module.draw_weights(0.5, 0.1)
    assert (fresh.weight.tolist(), loaded.weight.tolist()) == ([0.5] * 3, [0] * 3)


def test_a_module_that_does_not_say_how_cannot_be_made() -> None:
    class Silent(nn.Module, DrawsOwnWeights):
        pass

    with pytest.raises(TypeError, match="draw_weights"):
        Silent()
