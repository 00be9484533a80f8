"""The experts alone, routing given: every backend beside the dense MLP of as many FLOPs and a plain GEMM.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert, N = T * K rows.
"""

from functools import partial

import torch
from transformers.activations import ACT2FN

from moe_hf.bench.speed.arms import (
    GEMM,
    OWN,
    ROOF,
    TRAINING,
    Arm,
    Group,
    Options,
    Skipped,
    inference_step,
    training_step,
)
from moe_hf.bench.speed.opponents import DenseRoof, Weights, draw_weights, opponents
from moe_hf.bench.speed.routes import draw_routes
from moe_hf.bench.speed.sizes import Size, expert_flops, expert_gradient_bytes
from moe_hf.bench.speed.timing import Step
from moe_hf.layers.activations import activation, activation_name
from moe_hf.ops.activations import Activation
from moe_hf.ops.experts import ExpertStack, reference_experts

# Decoding is where launching the kernels one by one costs more than running them.
_MOST_CAPTURED_TOKENS = 16


def build_experts(size: Size, mode: str, options: Options) -> Group:
    """All arms on one set of weights, tokens and routes."""
    generator = options.generator()
    training = mode == TRAINING
    x_TD = torch.randn(size.tokens, size.hidden_size, generator=generator).to(options.device, size.torch_dtype)
    routes = draw_routes(size, generator)
    weight_TK, expert_TK = routes.weight_TK.to(options.device), routes.expert_TK.to(options.device)
    weights = draw_weights(size, options)
    grad_TD = torch.randn(size.tokens, size.hidden_size, generator=generator).to(x_TD)
    leaves = [x_TD, weight_TK, *weights]
    for leaf in leaves:
        leaf.requires_grad_()

    found, skipped = opponents(size, weights, options, training)
    arms = []
    for name, family, module in found:
        forward = partial(module, x_TD, expert_TK, weight_TK)
        arms.append(
            Arm(
                name,
                family,
                training_step(forward, leaves, grad_TD) if training else inference_step(forward),
                output=inference_step(forward),
                saved=forward if training else None,
                known=lambda: [x_TD, *weights],
                flops=expert_flops(size, training),
            )
        )
        if options.device.type == "cuda" and family == OWN and not training and size.tokens <= _MOST_CAPTURED_TOKENS:
            try:
                captured = _captured(inference_step(forward))
            except RuntimeError as error:
                skipped.append(Skipped(captured_name(name), f"cannot be captured: {error}"))
            else:
                arms.append(Arm(captured_name(name), OWN, captured, flops=expert_flops(size, False)))
    arms += yardsticks(size, weights, training, options)
    # An activation that the reference does not know is compared with transformers' eager experts instead.
    known = activation_name(ACT2FN[size.activation])
    reference = None if known is None else partial(_reference, x_TD, expert_TK, weight_TK, weights, Activation(known))
    return Group("experts", mode, size, arms, skipped, expert_gradient_bytes(size) if training else 0, reference)


def yardsticks(size: Size, weights: Weights, training: bool, options: Options) -> list[Arm]:
    """The dense MLP on T * K rows, and the plain GEMM of its up projection."""
    generator = options.generator()
    x_ND = torch.randn(size.rows, size.hidden_size, generator=generator).to(options.device, size.torch_dtype)
    grad_ND = torch.randn(size.rows, size.hidden_size, generator=generator).to(x_ND)
    roof = DenseRoof(weights, activation(size.activation))
    leaves = [x_ND.requires_grad_(), *roof.parameters()]
    forward = partial(roof, x_ND)
    # Into memory that is there already, so that only the multiplication is timed.
    out_NF = x_ND.new_empty(size.rows, size.expert_width)
    up_DF = weights.up_proj.detach()[0].T
    return [
        Arm(
            "dense MLP",
            ROOF,
            training_step(forward, leaves, grad_ND) if training else inference_step(forward),
            saved=forward if training else None,
            known=lambda: leaves,
            flops=expert_flops(size, training),
        ),
        Arm(
            "plain GEMM",
            GEMM,
            lambda: torch.mm(x_ND.detach(), up_DF, out=out_NF),
            flops=2.0 * size.rows * size.hidden_size * size.expert_width,
        ),
    ]


def captured_name(backend: str) -> str:
    """The name of the arm that replays a CUDA graph of a backend.

    >>> captured_name("triton")
    'triton, CUDA graph'
    """
    return f"{backend}, CUDA graph"


def _captured(step: Step) -> Step:
    """`step` as a CUDA graph, which only work that never waits for the device can become."""
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        # The first calls compile and tune, which a capture does not allow.
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def _reference(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, weights: Weights, act: Activation
) -> torch.Tensor:
    """The readable reference in float32, whatever the dtype of the weights."""
    up, up_bias, down, down_bias = (parameter.float() for parameter in weights)
    stack = ExpertStack(up, down, up_bias, down_bias)
    return reference_experts(x_TD.float(), expert_TK, weight_TK.float(), stack, act)
