import pytest
import torch
from torch.utils.checkpoint import checkpoint

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.activations import ACTIVATIONS, GATES, Activation
from moe_hf.ops.experts.expert_parts import ExpertStack
from moe_hf.ops.experts.reference import reference_experts
from moe_hf.ops.experts.triton.experts import triton_experts
from moe_hf.ops.experts.triton.tiles import INTERPRETED, Tiles

# In the interpreter a program costs milliseconds: few large tiles, with masks in every direction; SMALL ones where it
# matters that there are several.
TILES = Tiles(32, 64, 64)
SMALL = Tiles(16, 16, 32)
WIDTH, INNER, EXPERTS = 40, 48, 4


def problem(device, tokens=14, k=2, width=WIDTH, inner=INNER, experts=EXPERTS, gate="none", biased=True, seed=0):
    """x, weights, stack and chosen experts: some slots skipped, the last expert empty."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=random) * scale).to(device)

    up_width = inner if gate == "none" else 2 * inner
    up_EUD = normal(experts, up_width, width, scale=width**-0.5)
    down_EDF = normal(experts, width, inner, scale=inner**-0.5)
    biases = [normal(experts, up_width), normal(experts, width)] if biased else []
    expert_TK = torch.randint(0, experts, (tokens, k), generator=random)
    expert_TK[expert_TK == experts - 1] = experts
    return [normal(tokens, width), torch.rand(tokens, k, generator=random).to(device), up_EUD, down_EDF, *biases], (
        expert_TK.to(device)
    )


def run(function, leaves, expert_TK, activation, **options):
    """The output and the gradients of all leaves, of a loss that weighs every output differently."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    x_TD, weight_TK, *stack = leaves
    out_TD = function(x_TD, expert_TK, weight_TK, ExpertStack(*stack), activation, **options)
    dout_TD = torch.randn(out_TD.shape, generator=torch.Generator().manual_seed(1)).to(out_TD)
    gradients = torch.autograd.grad(out_TD, leaves, dout_TD, allow_unused=True)
    return [out_TD, *(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True))]


def assert_equal_to_reference(leaves, expert_TK, activation, tiles=TILES, tolerance=5e-6):
    """Output and every gradient, each against its own size; gives the kernels' ones."""
    wanted = run(reference_experts, leaves, expert_TK, activation)
    results = run(triton_experts, leaves, expert_TK, activation, tiles=tiles)
    for own, reference in zip(results, wanted, strict=True):
        assert own.dtype == reference.dtype
        scale = reference.abs().max().clamp(min=1e-6)
        assert (own - reference).abs().max() <= tolerance * scale
    return results


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_outputs_and_gradients_equal_the_reference(name, gate, device, poisoned_memory):
    leaves, expert_TK = problem(device, gate=gate)
    assert_equal_to_reference(leaves, expert_TK, Activation(name, gate))


@pytest.mark.parametrize("gate", ["none", "concatenated"])
def test_experts_without_biases(gate, device, poisoned_memory):
    leaves, expert_TK = problem(device, gate=gate, biased=False)
    assert_equal_to_reference(leaves, expert_TK, Activation("silu", gate))


@pytest.mark.parametrize("gate", ["none", "interleaved"])
def test_transposed_stacks_get_gradients_laid_out_like_them(gate, device, poisoned_memory):
    leaves, expert_TK = problem(device, gate=gate)
    leaves[2:4] = [matrix.mT.contiguous().mT for matrix in leaves[2:4]]
    _, _, _, *gradients = assert_equal_to_reference(leaves, expert_TK, Activation("gelu", gate))
    assert [gradient.stride() for gradient in gradients[:2]] == [matrix.stride() for matrix in leaves[2:4]]


@pytest.mark.parametrize(
    "shape",
    [
        {"tokens": 1, "k": 1},
        {"tokens": 3, "k": 4, "width": 3, "inner": 5},
        {"tokens": 70, "k": 3, "width": 16, "inner": 16, "experts": 2},
        {"tokens": 5, "k": 1, "width": 64, "inner": 96, "experts": 9},
        {"tokens": 9, "k": 2, "experts": 1},
    ],
    ids=str,
)
def test_other_shapes(shape, device, poisoned_memory):
    leaves, expert_TK = problem(device, **shape)
    assert_equal_to_reference(leaves, expert_TK % shape.get("experts", EXPERTS), Activation("gelu"))


def test_more_tiles_than_share_one_group(device, poisoned_memory):
    leaves, expert_TK = problem(device, tokens=85, width=16, inner=20, experts=1)
    # 11 full tiles: the last group has fewer than its 8.
    assert_equal_to_reference(leaves, torch.zeros_like(expert_TK), Activation("gelu"), tiles=SMALL)


def test_more_blocks_of_a_matrix_than_share_one_group(device, poisoned_memory):
    leaves, expert_TK = problem(device, tokens=3, k=1, width=16, inner=140, experts=1)
    assert_equal_to_reference(leaves, torch.zeros_like(expert_TK), Activation("gelu"), tiles=SMALL)


@pytest.mark.parametrize("gate", ["none", "interleaved"])
def test_several_tiles_in_every_direction(gate, device, poisoned_memory):
    leaves, expert_TK = problem(device, tokens=29, gate=gate, experts=3)
    assert_equal_to_reference(leaves, expert_TK, Activation("gelu_tanh", gate), tiles=SMALL)


def test_tiles_that_are_chosen_by_the_kernels(device, poisoned_memory):
    leaves, expert_TK = problem(device)
    assert_equal_to_reference(leaves, expert_TK, Activation("gelu"), tiles=None)


def test_all_tokens_to_one_expert(device, poisoned_memory):
    leaves, expert_TK = problem(device)
    assert_equal_to_reference(leaves, torch.full_like(expert_TK, 3), Activation("gelu"))


def test_skipped_slots_and_empty_experts_get_exactly_zero(device, poisoned_memory):
    leaves, expert_TK = problem(device)
    expert_TK[4] = EXPERTS
    out, dx, dweight, *dstack = run(triton_experts, leaves, expert_TK, Activation("gelu"), tiles=TILES)
    assert (expert_TK == EXPERTS).sum() > 2
    assert torch.count_nonzero(dweight[expert_TK == EXPERTS]) == 0
    assert torch.count_nonzero(out[4]) == torch.count_nonzero(dx[4]) == 0
    assert all(torch.count_nonzero(gradient[EXPERTS - 1]) == 0 for gradient in dstack)


def test_all_slots_skipped(device, poisoned_memory):
    leaves, expert_TK = problem(device)
    results = run(triton_experts, leaves, torch.full_like(expert_TK, EXPERTS), Activation("gelu"), tiles=TILES)
    assert all(torch.count_nonzero(result) == 0 for result in results)


def test_no_tokens(device, poisoned_memory):
    leaves, expert_TK = problem(device, tokens=0)
    out, dx, dweight, *dstack = run(triton_experts, leaves, expert_TK, Activation("gelu"))
    assert out.shape == dx.shape == (0, WIDTH)
    assert dweight.shape == (0, 2)
    assert all(torch.count_nonzero(gradient) == 0 for gradient in dstack)


def test_inputs_need_not_be_contiguous(device, poisoned_memory):
    leaves, expert_TK = problem(device, tokens=28, width=2 * WIDTH)
    x_TD, weight_TK, up_EUD, down_EDF, up_bias_EU, down_bias_ED = leaves
    strided = [x_TD[::2, ::2], weight_TK[::2], up_EUD[:, :, ::2], down_EDF[:, ::2], up_bias_EU, down_bias_ED[:, ::2]]
    assert_equal_to_reference(strided, expert_TK[::2], Activation("gelu"))


@pytest.mark.parametrize("kind", ["sliced", "expanded"])
def test_one_expert_of_several_per_token(kind, device, poisoned_memory):
    leaves, expert_TK = problem(device)
    leaves[1] = leaves[1][:, :1]
    expert_TK = expert_TK[:, 1:] if kind == "sliced" else expert_TK[:1, :1].expand(len(expert_TK), 1)
    assert_equal_to_reference(leaves, expert_TK, Activation("gelu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", ["none", "interleaved"])
def test_half_precision_is_as_near_to_float32_as_the_reference(gate, dtype, device, poisoned_memory):
    leaves, expert_TK = problem(device, gate=gate)
    leaves = [leaf.to(dtype) for leaf in leaves]
    # Routing weights usually stay in float32.
    leaves[1] = leaves[1].float()
    exact = run(reference_experts, [leaf.float() for leaf in leaves], expert_TK, Activation("gelu", gate))
    rounded = run(reference_experts, leaves, expert_TK, Activation("gelu", gate))
    own = run(triton_experts, leaves, expert_TK, Activation("gelu", gate), tiles=TILES)
    # The interpreter cuts bits off where a GPU rounds to the nearest bfloat16.
    factor = 4 if INTERPRETED and dtype == torch.bfloat16 else 1.2
    for result, reference, truth in zip(own, rounded, exact, strict=True):
        assert result.dtype == reference.dtype
        assert (result - truth).norm() <= factor * (reference - truth).norm()


def test_autocast_casts_the_operands_and_gives_master_weights_their_gradients(device, poisoned_memory):
    leaves, expert_TK = problem(device)
    rounded = [leaf if index == 1 else leaf.bfloat16() for index, leaf in enumerate(leaves)]
    wanted = run(triton_experts, rounded, expert_TK, Activation("gelu"), tiles=TILES)
    with torch.autocast(device.type, torch.bfloat16):
        results = run(triton_experts, leaves, expert_TK, Activation("gelu"), tiles=TILES)
    for result, reference in zip(results, wanted, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, reference.float())


@pytest.mark.parametrize("trained", [{0}, {1}, {2}, {3}, {4}, {5}])
def test_only_what_wants_a_gradient_gets_one(trained, device, poisoned_memory):
    leaves, expert_TK = problem(device, tokens=7)
    wanted = run(triton_experts, leaves, expert_TK, Activation("gelu"), tiles=TILES)[1:]
    leaves = [leaf.requires_grad_(index in trained) for index, leaf in enumerate(leaves)]
    x_TD, weight_TK, *stack = leaves
    out_TD = triton_experts(x_TD, expert_TK, weight_TK, ExpertStack(*stack), Activation("gelu"), TILES)
    out_TD.backward(torch.randn(out_TD.shape, generator=torch.Generator().manual_seed(1)).to(out_TD))
    for index, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (index in trained)
        assert index not in trained or torch.equal(leaf.grad, wanted[index])


@pytest.mark.parametrize("gate", ["none", "concatenated"])
def test_only_the_pre_activations_are_kept_for_the_backward_pass(gate, device):
    leaves, expert_TK = problem(device, gate=gate)
    given = {leaf.data_ptr() for leaf in (*leaves, expert_TK)}
    kept = []

    def pack(tensor):
        if tensor.data_ptr() not in given:
            kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(triton_experts, leaves, expert_TK, Activation("gelu", gate), tiles=TILES)
    columns = INNER if gate == "none" else 2 * INNER
    tokens, k = expert_TK.shape
    assert sum(kept) == 4 * (tokens * k * (columns + 1) + EXPERTS + 1)


def test_nothing_is_kept_where_nothing_is_trained(device):
    (x_TD, weight_TK, *stack), expert_TK = problem(device, tokens=7)
    stack = ExpertStack(*stack)
    plain_TD = triton_experts(x_TD, expert_TK, weight_TK, stack, Activation("gelu"), TILES)
    with torch.no_grad():
        frozen_TD = triton_experts(x_TD.requires_grad_(), expert_TK, weight_TK, stack, Activation("gelu"), TILES)
    assert plain_TD.grad_fn is None
    assert torch.equal(plain_TD, frozen_TD)


def test_runs_repeat_bit_by_bit(device):
    leaves, expert_TK = problem(device)
    first, second = (run(triton_experts, leaves, expert_TK, Activation("gelu"), tiles=TILES) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_gradient_checkpointing_changes_nothing(device):
    def checkpointed(*args, **kwargs):
        return checkpoint(triton_experts, *args, use_reentrant=False, **kwargs)

    leaves, expert_TK = problem(device, tokens=7)
    wanted = run(triton_experts, leaves, expert_TK, Activation("gelu"), tiles=TILES)
    results = run(checkpointed, leaves, expert_TK, Activation("gelu"), tiles=TILES)
    assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))


def test_the_experts_compile_as_one_graph_for_any_number_of_tokens(device):
    compiled = torch.compile(triton_experts, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (7, 9):
        leaves, expert_TK = problem(device, tokens=tokens)
        wanted = run(triton_experts, leaves, expert_TK, Activation("gelu"), tiles=TILES)
        results = run(compiled, leaves, expert_TK, Activation("gelu"), tiles=TILES)
        assert all(torch.equal(one, other) for one, other in zip(results, wanted, strict=True))


def test_the_operator_keeps_torchs_rules(device):
    leaves, expert_TK = problem(device, tokens=7)
    # Rows of skipped slots are never written, and the rules compare every output.
    expert_TK %= EXPERTS
    leaves[2] = leaves[2].mT.contiguous().mT
    leaves = [leaf.requires_grad_() for leaf in leaves]
    arguments = (*leaves, expert_TK, "gelu", "none", True, list(TILES))
    torch.library.opcheck(torch.ops.moe_hf.triton_experts.default, arguments)


def test_a_second_derivative_is_refused(device):
    leaves, expert_TK = problem(device, tokens=7)
    x_TD, weight_TK, *stack = (leaf.requires_grad_() for leaf in leaves)
    out_TD = triton_experts(x_TD, expert_TK, weight_TK, ExpertStack(*stack), Activation("gelu"), TILES)
    (dx_TD,) = torch.autograd.grad(out_TD.square().sum(), x_TD, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        dx_TD.sum().backward()


def test_types_that_the_kernels_lack_are_refused(device):
    (x_TD, weight_TK, *stack), expert_TK = problem(device, tokens=7)
    with pytest.raises(ConfigError, match=r"x is torch\.float64"):
        triton_experts(x_TD.double(), expert_TK, weight_TK, ExpertStack(*stack), Activation("gelu"))
    mixed = ExpertStack(stack[0], stack[1].bfloat16())
    with pytest.raises(ConfigError, match=r"the stack torch\.float32, torch\.bfloat16"):
        triton_experts(x_TD, expert_TK, weight_TK, mixed, Activation("gelu"))


def test_an_unknown_activation_is_refused(device):
    (x_TD, weight_TK, *stack), expert_TK = problem(device, tokens=7)
    with pytest.raises(ConfigError, match="gelu, gelu_tanh"):
        triton_experts(x_TD, expert_TK, weight_TK, ExpertStack(*stack), Activation("swish"))
