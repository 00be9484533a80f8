"""The forms that are written for comparison compute the same as the mixers."""

import torch

from moe_hf.bench.mixers.layers import Layer, drawn, with_other_form
from moe_hf.bench.mixers.peers import CachedDotProduct, unbinding_scan
from moe_hf.layers.mixers import mamba1
from tests.bench.measured import close

WIDTH, LENGTH = 64, 37


def test_the_scan_of_unbound_tokens_is_mamba_s_in_value_and_gradient() -> None:
    layer, x_BSD = Layer("Mamba-1", WIDTH), drawn(LENGTH, WIDTH).requires_grad_()
    other = with_other_form(layer, mamba1, "selective_scan", unbinding_scan)
    wanted, got = layer(x_BSD), other(x_BSD)
    assert close(got, wanted)
    weight = torch.linspace(-1, 1, WIDTH)
    (expected,) = torch.autograd.grad((wanted * weight).sum(), x_BSD)
    assert close(torch.autograd.grad((got * weight).sum(), x_BSD)[0], expected)
    # What was exchanged is put back.
    assert mamba1.selective_scan is not unbinding_scan


@torch.no_grad()
def test_the_cached_dot_product_is_hyena_s_decoding() -> None:
    layer, x_BSD = Layer("Hyena", WIDTH), drawn(LENGTH, WIDTH)
    peer = CachedDotProduct(layer.mixer, x_BSD[:, :-2], room=4)
    parts = [peer.step(x_BSD[:, n : n + 1]) for n in (LENGTH - 2, LENGTH - 1)]
    assert close(torch.cat(parts, dim=1), layer(x_BSD)[:, -2:])
