"""Each kernel of the backward pass by itself against autograd over one expert after the other."""

import pytest
import torch

from moe_hf.ops.experts.activations import GATES, Activation, activate
from moe_hf.ops.experts.triton.gradients import hidden_gradients, routing_weight_gradient, weight_gradient
from tests.ops.experts.triton.rows import TILES, D, E, F, K, T, chosen, draw, sorted_rows


@pytest.mark.parametrize("gate", GATES)
def test_what_flows_into_the_hidden_layer_is_autograds(gate, device, poisoned_memory):
    activation = Activation("gelu", gate)
    rows, slots = sorted_rows(device)
    width = F if gate == "none" else 2 * F
    shapes = [(T, D), (E, D, F), (T, K), (T * K, width)]
    dout, down, weight, z = (draw(*shape, seed=n, device=device) for n, shape in enumerate(shapes))
    dz, weighted_h, parts = hidden_gradients(rows, dout, down, weight, z, activation, TILES)
    start = 0
    for expert, slot in slots.items():
        own = slice(start, start + len(slot))
        leaf, factor = z[own].clone().requires_grad_(), weight.flatten()[slot, None].requires_grad_()
        h = activate(leaf, activation)
        (wanted, dfactor) = torch.autograd.grad(h @ down[expert].mT * factor, (leaf, factor), dout[slot // K])
        torch.testing.assert_close(dz[own], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(weighted_h[own], (h * factor).detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parts[slot].sum(dim=1, keepdim=True), dfactor, rtol=1e-4, atol=1e-4)
        start += len(slot)


@pytest.mark.parametrize("biased", [True, False])
def test_parts_and_biases_make_the_gradient_of_the_routing_weights(biased, device, poisoned_memory):
    expert, parts = chosen(device), draw(T * K, 3, seed=0, device=device)
    dout, bias = draw(T, D, seed=1, device=device), draw(E, D, seed=2, device=device)
    found = torch.empty(T, K, device=device)
    routing_weight_gradient(parts, dout, expert, bias if biased else None, E, found)
    wanted = parts.sum(dim=1).view(T, K)
    if biased:
        wanted = wanted + (dout[:, None] * bias[expert.clamp(max=E - 1)]).sum(dim=-1)
    torch.testing.assert_close(found, wanted.masked_fill(expert == E, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gathered", ["p", "q"])
@pytest.mark.parametrize("weighted", [True, False])
def test_matrices_and_biases_get_sums_over_the_rows_of_their_expert(gathered, weighted, device, poisoned_memory):
    rows, slots = sorted_rows(device)
    p = draw(T if gathered == "p" else T * K, D, seed=0, device=device)
    q = draw(T if gathered == "q" else T * K, F, seed=1, device=device)
    weight = draw(T, K, seed=2, device=device)
    dmatrix, dbias = torch.empty(E, D, F, device=device), torch.empty(E, D, device=device)
    weight_gradient(rows, p, q, gathered, dmatrix, dbias, weight if weighted else None, TILES)
    start = 0
    for expert, slot in slots.items():
        own = slice(start, start + len(slot))
        p_own, q_own = (p[slot // K], q[own]) if gathered == "p" else (p[own], q[slot // K])
        torch.testing.assert_close(dmatrix[expert], p_own.mT @ q_own, rtol=1e-4, atol=1e-4)
        factor = weight.flatten()[slot, None] if weighted else 1
        torch.testing.assert_close(dbias[expert], (p_own * factor).sum(dim=0), rtol=1e-4, atol=1e-4)
        start += len(slot)
    assert dmatrix[1].count_nonzero() == dbias[1].count_nonzero() == 0
