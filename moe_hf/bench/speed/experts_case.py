"""The experts alone, routing given: every backend beside the dense MLP of as many FLOPs and a plain GEMM.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert, N = T * K rows.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from moe_hf.bench.speed.arms import (
    GEMM,
    OWN,
    ROOF,
    TRAINING,
    Arm,
    Check,
    Group,
    Options,
    Output,
    Skipped,
    inference_output,
    inference_step,
    training_output,
    training_step,
)
from moe_hf.bench.speed.comparison import CANNOT_RUN, reason_text
from moe_hf.bench.speed.opponents import GPU_SUBJECT, DenseRoof, Weights, draw_weights, opponents
from moe_hf.bench.speed.reference import ReferenceExperts
from moe_hf.bench.speed.routes import draw_routes
from moe_hf.bench.speed.sizes import Size, expert_flops, expert_gradient_bytes
from moe_hf.layers.experts.activations import activation

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

    def output_of(module: nn.Module) -> Output:
        forward = partial(module, x_TD, expert_TK, weight_TK)
        return training_output(forward, leaves, grad_TD) if training else inference_output(forward)

    found, skipped = opponents(size, weights, options, training)
    reference = output_of(ReferenceExperts(weights, size.activation))
    flops = expert_flops(size, training)
    capturing = options.device.type == "cuda" and not training and size.tokens <= _MOST_CAPTURED_TOKENS
    arms = []
    for name, family, module in found:
        forward = partial(module, x_TD, expert_TK, weight_TK)
        arms.append(
            Arm(
                name,
                family,
                training_step(forward, leaves, grad_TD) if training else inference_step(forward),
                check=Check(output_of(module), reference),
                saved=forward if training else None,
                known=lambda: [x_TD, *weights],
                flops=flops,
                further=partial(captured_arm, name, forward, flops, reference)
                if capturing and name == GPU_SUBJECT
                else None,
            )
        )
    arms += yardsticks(size, weights, training, options)
    return Group("experts", mode, size, arms, skipped, expert_gradient_bytes(size) if training else 0)


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


def captured_arm(name: str, forward: Callable[[], torch.Tensor], flops: float, reference: Output) -> Arm | Skipped:
    """The arm that replays a CUDA graph of `forward`, which only work that never waits for the device can become."""
    step = inference_step(forward)
    warm_up = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    try:
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            # The first calls compile and tune, which a capture does not allow.
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(warm_up)
        with torch.cuda.graph(graph):
            result = step()
    except CANNOT_RUN as error:
        return Skipped(captured_name(name), f"cannot be captured: {reason_text(error)}")

    def output() -> list[torch.Tensor]:
        graph.replay()
        return [result.clone()]

    return Arm(captured_name(name), OWN, graph.replay, check=Check(output, reference), flops=flops)
