"""The experts alone, routing given: every backend beside the dense MLP of as many FLOPs and a plain GEMM.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert, N = T * K rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moe_hf.bench.harness.arms import (
    DECODE,
    FORWARD,
    GEMM,
    OWN,
    ROOF,
    TRAINING,
    TRANSFORMERS,
    Arm,
    Check,
    Group,
    Options,
    Output,
    Skipped,
    output_of,
    step_of,
)
from moe_hf.bench.harness.cases import SAVED, Fastest, Goal
from moe_hf.bench.harness.comparison import CANNOT_RUN, reason_text
from moe_hf.bench.speed.opponents import (
    GPU_SUBJECT,
    PACKED,
    QUANTISED,
    SUBJECT,
    DenseRoof,
    Weights,
    draw_weights,
    opponents,
    quantised_opponents,
)
from moe_hf.bench.speed.reference import ReferenceExperts
from moe_hf.bench.speed.routes import draw_routes
from moe_hf.bench.speed.sizes import Size, expert_flops, expert_gradient_bytes, sizes_with
from moe_hf.layers.experts.activations import activation

EXPERTS = "experts"
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
    grad_TD = torch.randn(size.tokens, size.hidden_size, generator=generator).to(x_TD) if training else None
    leaves = [x_TD, weight_TK, *weights]
    for leaf in leaves:
        leaf.requires_grad_()

    found, skipped = opponents(size, weights, options, training)
    wanted = partial(ReferenceExperts(weights, size.activation), x_TD, expert_TK, weight_TK)
    reference = output_of(wanted, leaves, grad_TD)
    flops = expert_flops(size, training)
    capturing = options.device.type == "cuda" and not training and size.tokens <= _MOST_CAPTURED_TOKENS
    arms = []
    for name, family, module in found:
        forward = partial(module, x_TD, expert_TK, weight_TK)
        arm = Arm(
            name,
            step_of(forward, leaves, grad_TD),
            family,
            check=Check(output_of(forward, leaves, grad_TD), reference),
            saved=forward if training else None,
            known=lambda: [x_TD, *weights],
            flops=flops,
            gradient_bytes=expert_gradient_bytes(size) if training else 0,
        )
        if capturing and name == GPU_SUBJECT:
            arm = arm._replace(further=partial(captured_arm, name, forward, flops, reference))
        arms.append(arm)
    if mode == DECODE:
        rounded, absent = quantised_opponents(size, weights, options)
        # Unchecked: what rounding the weights changes is no error of the product, which its own tests hold.
        arms += [
            Arm(name, step_of(partial(module, x_TD, expert_TK, weight_TK), leaves, None), family, flops=flops)
            for name, family, module in rounded
        ]
        skipped = [*skipped, *absent]
    return Group([*arms, *yardsticks(size, weights, training, options)], skipped)


def yardsticks(size: Size, weights: Weights, training: bool, options: Options) -> list[Arm]:
    """The dense MLP on T * K rows, and the plain GEMM of its up projection."""
    generator = options.generator()
    x_ND = torch.randn(size.rows, size.hidden_size, generator=generator).to(options.device, size.torch_dtype)
    grad_ND = torch.randn(size.rows, size.hidden_size, generator=generator).to(x_ND) if training else None
    roof = DenseRoof(weights, activation(size.activation))
    leaves = [x_ND.requires_grad_(), *roof.parameters()]
    forward = partial(roof, x_ND)
    # Into memory that is there already, so that only the multiplication is timed.
    out_NF = x_ND.new_empty(size.rows, size.expert_width)
    up_DF = weights.up_proj.detach()[0].T
    dense = Arm(
        "dense MLP",
        step_of(forward, leaves, grad_ND),
        ROOF,
        saved=forward if training else None,
        known=lambda: leaves,
        flops=expert_flops(size, training),
    )
    gemm_flops = 2.0 * size.rows * size.hidden_size * size.expert_width
    gemm = Arm("plain GEMM", lambda: torch.mm(x_ND.detach(), up_DF, out=out_NF), GEMM, flops=gemm_flops)
    return [dense, gemm]


def captured_name(backend: str) -> str:
    """The name of the arm that replays a CUDA graph of a backend.

    >>> captured_name("triton")
    'triton, CUDA graph'
    """
    return f"{backend}, CUDA graph"


def captured_arm(name: str, forward: Callable[[], torch.Tensor], flops: float, reference: Output) -> Arm | Skipped:
    """The arm that replays a CUDA graph of `forward`, which only work that never waits for the device can become."""
    step = step_of(forward)
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
        # The next replay writes into the same memory.
        return [result.clone()]

    return Arm(captured_name(name), graph.replay, OWN, check=Check(output, reference), flops=flops)


def _goal(
    quantity: str,
    mode: str,
    must: float,
    goal: float | None,
    above: str | Fastest,
    below: str | Fastest | Callable[[Size], float],
    sizes: Callable[[Size], bool],
    **fields: Any,
) -> Goal:
    return Goal(quantity, must, above, below, goal, case=EXPERTS, mode=mode, sizes=sizes, **fields)


def _allowed_bytes(size: Size) -> float:
    return size.tokens * (size.k * size.expert_width * size.torch_dtype.itemsize * 1.05 + 128)


_BEST, _ROOF, _DEFAULT, _CAPTURED = Fastest(TRANSFORMERS), Fastest(ROOF), "grouped_mm", captured_name(GPU_SUBJECT)
_GELU, _GELU_NEW, _BF16 = sizes_with(), sizes_with(activation="gelu_new"), sizes_with(dtype="bfloat16")
_SMALL = sizes_with(activation=None, small=True)
# Time over the roof's, and bytes, are the better the less they are.
_LESS: dict[str, Any] = {"higher": False}
_FEWER_BYTES: dict[str, Any] = {"higher": False, "of": SAVED}

EXPERTS_CPU_GOALS: tuple[Goal, ...] = (
    _goal("forward, gelu, vs the best transformers backend", FORWARD, 1.05, 1.15, _BEST, SUBJECT, _GELU),
    _goal("the same, weights packed for inference", FORWARD, 1.05, 1.2, _BEST, PACKED, _GELU),
    _goal("forward, gelu, vs transformers' default grouped_mm", FORWARD, 1.2, 1.4, _DEFAULT, SUBJECT, _GELU),
    _goal("forward, gelu_new, vs the best", FORWARD, 1.2, 1.4, _BEST, SUBJECT, _GELU_NEW),
    _goal("forward, gelu_new, vs grouped_mm", FORWARD, 1.9, 2.5, _DEFAULT, SUBJECT, _GELU_NEW),
    _goal("forward+backward, gelu, vs the best", TRAINING, 1.05, 1.10, _BEST, SUBJECT, _GELU),
    _goal("forward+backward, gelu_new, vs the best", TRAINING, 1.2, 1.25, _BEST, SUBJECT, _GELU_NEW),
    _goal("forward, time / dense MLP of equal active FLOPs", FORWARD, 1.0, 0.87, SUBJECT, _ROOF, _GELU, **_LESS),
    _goal(
        "forward+backward, time / dense, >= 256 rows per expert",
        TRAINING,
        1.15,
        1.0,
        SUBJECT,
        _ROOF,
        sizes_with(least_rows=256),
        **_LESS,
    ),
    _goal("small widths, forward, vs the best", FORWARD, 1.0, None, _BEST, SUBJECT, _SMALL),
    _goal("small widths, forward+backward, vs the best", TRAINING, 1.0, None, _BEST, SUBJECT, _SMALL),
    _goal("decode, T=1, vs the best", DECODE, 1.3, 1.6, _BEST, SUBJECT, sizes_with(tokens=1)),
    _goal("decode, T=8, vs the best", DECODE, 1.7, 2.2, _BEST, SUBJECT, sizes_with(tokens=8)),
    *(
        _goal(f"decode, T=1, experts in {name} vs in float32", DECODE, 1.0, 1.5, SUBJECT, name, sizes_with(tokens=1))
        for name in QUANTISED
    ),
    _goal("bf16 forward vs the best", FORWARD, 0.98, 1.05, _BEST, SUBJECT, _BF16),
    _goal("bf16 forward+backward vs the best", TRAINING, 0.98, 1.05, _BEST, SUBJECT, _BF16),
    _goal(
        "saved for backward / (kF x itemsize x 1.05 + 128), gelu",
        TRAINING,
        1.0,
        None,
        SUBJECT,
        _allowed_bytes,
        _GELU,
        **_FEWER_BYTES,
    ),
    _goal("saved for backward / grouped_mm, gelu", TRAINING, 0.5, 0.40, SUBJECT, _DEFAULT, _GELU, **_FEWER_BYTES),
    _goal(
        "saved for backward / grouped_mm, gelu_new", TRAINING, 0.25, 0.18, SUBJECT, _DEFAULT, _GELU_NEW, **_FEWER_BYTES
    ),
)

EXPERTS_GPU_GOALS: tuple[Goal, ...] = (
    _goal("forward vs ScatterMoE", FORWARD, 0.95, 1.10, "scattermoe", GPU_SUBJECT, _BF16),
    _goal("forward+backward vs ScatterMoE", TRAINING, 1.0, 1.20, "scattermoe", GPU_SUBJECT, _BF16),
    _goal("forward vs grouped_mm", FORWARD, 1.1, 1.3, _DEFAULT, GPU_SUBJECT, _BF16),
    _goal("forward+backward vs grouped_mm", TRAINING, 1.2, 1.5, _DEFAULT, GPU_SUBJECT, _BF16),
    _goal("forward, share of a dense MLP's throughput", FORWARD, 0.45, 0.60, _ROOF, GPU_SUBJECT, _BF16),
    _goal("forward+backward, the same", TRAINING, 0.45, 0.60, _ROOF, GPU_SUBJECT, _BF16),
    _goal("decode in a CUDA graph vs without", DECODE, 1.0, None, GPU_SUBJECT, _CAPTURED, _BF16),
)
