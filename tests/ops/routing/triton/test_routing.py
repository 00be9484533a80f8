import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.routing.routing import top_k_routing
from moe_hf.ops.routing.triton.routing import triton_top_k_routing


def both(logits_TE, k, normalize):
    """Weights, experts and the logits' gradient: the reference's, then the kernel's."""
    dweight_TK = torch.randn(len(logits_TE), k, device=logits_TE.device).to(logits_TE.dtype)
    for function in (top_k_routing, triton_top_k_routing):
        leaf_TE = logits_TE.detach().requires_grad_()
        weight_TK, expert_TK = function(leaf_TE, k, normalize)
        (gradient_TE,) = torch.autograd.grad(weight_TK, leaf_TE, dweight_TK)
        yield weight_TK, expert_TK, gradient_TE


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(37, 5, 2), (50, 70, 8), (1, 1, 1), (19, 5, 5), (3, 300, 7), (0, 5, 2)])
def test_outputs_and_gradients_equal_the_reference(shape, normalize, device, poisoned_memory):
    torch.manual_seed(0)
    num_tokens, num_experts, k = shape
    (weight, expert, gradient), (own_weight, own_expert, own_gradient) = both(
        3 * torch.randn(num_tokens, num_experts, device=device), k, normalize
    )
    assert torch.equal(own_expert, expert)
    torch.testing.assert_close(own_weight, weight, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(own_gradient, gradient, rtol=2e-5, atol=1e-6)


def test_logits_need_not_be_contiguous(device, poisoned_memory):
    torch.manual_seed(0)
    logits_TE = torch.randn(6, 40, device=device).T[::2]
    (weight, expert, gradient), (own_weight, own_expert, own_gradient) = both(logits_TE, 2, True)
    assert torch.equal(own_expert, expert)
    torch.testing.assert_close(own_weight, weight)
    torch.testing.assert_close(own_gradient, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_weights_in_their_type(dtype, device, poisoned_memory):
    torch.manual_seed(0)
    # Distinct values, so that no tie leaves the choice open.
    logits_TE = torch.stack([torch.randperm(12, device=device) for _ in range(33)]).to(dtype) / 4
    (weight, expert, gradient), (own_weight, own_expert, own_gradient) = both(logits_TE, 3, True)
    assert torch.equal(own_expert, expert)
    assert own_weight.dtype == own_gradient.dtype == dtype
    torch.testing.assert_close(own_weight, weight, rtol=0, atol=8e-3)
    torch.testing.assert_close(own_gradient, gradient, rtol=0, atol=2e-2)


def test_ties_go_to_the_lower_index_and_minus_infinity_loses(device, poisoned_memory):
    low = -float("inf")
    logits_TE = torch.tensor([[1.0, 1.0, 1.0, low], [-0.0, 0.0, -1.0, 2.0], [low, 3.0, low, low]], device=device)
    weight_TK, expert_TK = triton_top_k_routing(logits_TE, k=3, normalize=False)
    assert expert_TK.tolist() == [[0, 1, 2], [3, 0, 1], [1, 0, 2]]
    torch.testing.assert_close(weight_TK, logits_TE.softmax(-1).gather(1, expert_TK))


def test_more_choices_than_experts_are_refused(device):
    with pytest.raises(ConfigError, match="k=4 and E=3"):
        triton_top_k_routing(torch.zeros(2, 3, device=device), k=4)


def test_double_precision_is_refused(device):
    with pytest.raises(ConfigError, match="float64"):
        triton_top_k_routing(torch.zeros(2, 3, device=device, dtype=torch.float64), k=2)


def test_the_router_compiles_as_one_graph(device):
    torch.manual_seed(0)
    logits_TE = torch.randn(9, 6, device=device, requires_grad=True)

    def entropy_like(logits_TE):
        weight_TK, expert_TK = triton_top_k_routing(logits_TE, 2)
        return (weight_TK.square() * (expert_TK + 1)).sum()

    (wanted,) = torch.autograd.grad(entropy_like(logits_TE), logits_TE)
    compiled = torch.compile(entropy_like, backend="aot_eager", fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(logits_TE), logits_TE)
    assert torch.equal(gradient, wanted)
