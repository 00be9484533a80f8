"""The routers alone: tokens in, logits, weights and experts out, for every kind of router.

Shapes: T tokens, D width, E experts, K experts per token.
"""

import os
from functools import partial

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.base.optional import is_available
from moe_hf.bench.harness.arms import OWN, ROOF, TRAINING, Arm, Group, Options, Skipped, step_of
from moe_hf.bench.speed.configs import moe_config
from moe_hf.bench.speed.sizes import Size
from moe_hf.layers.ffn.routers import ROUTERS, Router

ROUTER = "router"
FUSED_ROUTER = "top_k, fused kernel"
"""The projection and this package's Triton kernel for softmax, top-k and normalisation; measured where Triton runs."""


def build_routers(size: Size, mode: str, options: Options) -> Group:
    """Every router on the same tokens, beside the bare projection that gives the logits."""
    training = mode == TRAINING
    x_TD, token_ids_T = draw_tokens(size, options)
    x_TD.requires_grad_()
    flops = (3 if training else 1) * 2.0 * size.tokens * size.hidden_size * size.num_experts
    arms, skipped = [], []
    for name in ROUTERS:
        try:
            router = make_router(name, size, options)
        except ConfigError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        forward = partial(_weights, router.train(training), x_TD, token_ids_T)
        if not training:
            arms.append(Arm(name, step_of(forward), OWN, flops=flops))
            continue
        weight_TK = forward()
        if not weight_TK.requires_grad:
            skipped.append(Skipped(name, "has no gradient"))
            continue
        step = step_of(forward, [x_TD, *router.parameters()], torch.ones_like(weight_TK))
        known = partial(_known, router, x_TD)
        arms.append(Arm(name, step, OWN, saved=forward, known=known, flops=flops))

    weight_ED = torch.randn(size.num_experts, size.hidden_size, generator=options.generator())
    matrix_ED = weight_ED.to(options.device).requires_grad_()
    bare = {"logits alone": (ROOF, partial(_logits, x_TD, matrix_ED))}
    if is_available("triton") and _kernels_run_on(options.device):
        bare[FUSED_ROUTER] = (OWN, partial(_fused_top_k, x_TD, matrix_ED, size.k))
    for name, (family, project) in bare.items():
        try:
            grad = torch.ones_like(project()) if training else None
        except ConfigError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        arms.append(Arm(name, step_of(project, [x_TD, matrix_ED], grad), family, flops=flops))
    return Group(arms, skipped)


def make_router(name: str, size: Size, options: Options) -> Router:
    """A fresh router, drawn from the seed; the switch router takes one expert per token, whatever the size says.

    Raises:
        ConfigError: this kind cannot route this size.
    """
    torch.manual_seed(options.seed)
    k = 1 if name == "switch" else size.k
    # Experts that pick their tokens keep to the capacity by themselves, and refuse another for evaluation.
    limit = None if name == "expert_choice" else size.capacity_factor
    config = moe_config(size, router_type=name, num_experts_per_tok=k, router_eval_capacity_factor=limit)
    router = ROUTERS[name].from_config(config)
    return router.to(options.device, size.torch_dtype)


def draw_tokens(size: Size, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal tokens (T, D), as a LayerNorm leaves them, and vocabulary ids (T,) as skewed as words are.

    An id of rank r is drawn in proportion to 1 / r (Zipf), which is what hash routing has to live with.
    """
    generator = options.generator()
    x_TD = torch.randn(size.tokens, size.hidden_size, generator=generator)
    frequency_V = 1.0 / torch.arange(1, moe_config(size).vocab_size + 1)
    token_ids_T = torch.multinomial(frequency_V, size.tokens, replacement=True, generator=generator)
    return x_TD.to(options.device, size.torch_dtype), token_ids_T.to(options.device)


def _weights(router: Router, x_TD: torch.Tensor, token_ids_T: torch.Tensor) -> torch.Tensor:
    return router(x_TD, token_ids_T)[1]


def _kernels_run_on(device: torch.device) -> bool:
    # Under Triton's interpreter they run on a CPU too, to be tested there.
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _fused_top_k(x_TD: torch.Tensor, matrix_ED: torch.Tensor, k: int) -> torch.Tensor:
    # The kernels import Triton at their top, which only those may pay for who have it and use it.
    from moe_hf.ops.routing.triton.routing import triton_top_k_routing

    return triton_top_k_routing(_logits(x_TD, matrix_ED), k, True).weight_TK


def _logits(x_TD: torch.Tensor, matrix_ED: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x_TD.float(), matrix_ED)


def _known(router: Router, x_TD: torch.Tensor) -> list[torch.Tensor]:
    return [x_TD, *router.parameters(), *router.buffers()]
