"""One sparse layer, and one block around it, with every experts backend, beside the dense one of as many FLOPs.

transformers' backends run inside this package's modules here, so with this package's one-kernel activations.

Shapes: B sequences, S positions, T = B * S tokens, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from moe_hf.base.errors import ConfigError
from moe_hf.bench.speed.arms import (
    ROOF,
    TRAINING,
    Arm,
    Group,
    Options,
    Skipped,
    inference_step,
    training_step,
)
from moe_hf.bench.speed.configs import batch_shape, moe_config
from moe_hf.bench.speed.opponents import TRANSFORMERS_BACKENDS, batched_obstacle, family_of
from moe_hf.bench.speed.router_case import draw_tokens
from moe_hf.bench.speed.sizes import Size, expert_flops
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.layers.experts_backends import EXPERTS_BACKENDS
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.models.decoder import DecoderLayer

DENSE = "dense, equal FLOPs"


def build_layer(size: Size, mode: str, options: Options) -> Group:
    """`SparseFFN`, router included, beside a dense FFN as wide as the K experts of a token together."""
    dense = partial(_dense_ffn, moe_config(size, intermediate_size=size.k * size.expert_width))
    return _build("layer", size, mode, options, SparseFFN, dense, _call_ffn)


def build_block(size: Size, mode: str, options: Options) -> Group:
    """`DecoderLayer`: norms, attention and the sparse FFN, beside the same with the dense FFN of as many FLOPs."""
    config = moe_config(size, intermediate_size=size.k * size.expert_width, mlp_layer_types=["dense"])
    return _build("block", size, mode, options, _block, partial(_block, config), _call_block)


def layer_backends(size: Size, options: Options, training: bool) -> tuple[list[str], list[Skipped]]:
    """The experts backends that a layer of this size can be measured with, and the others with the reason."""
    names, skipped = [], []
    for name in [*TRANSFORMERS_BACKENDS, *EXPERTS_BACKENDS]:
        if not options.wants(name):
            continue
        obstacle = batched_obstacle(size, options, training) if name == "batched_mm" else None
        if obstacle is None:
            names.append(name)
        else:
            skipped.append(Skipped(name, obstacle))
    return names, skipped


def drawn(make: Callable[[], nn.Module], size: Size, options: Options) -> nn.Module:
    """A module with weights from the seed that keep the variance of what passes through."""
    module = make()
    generator = options.generator()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 or name.endswith("bias"):
                # Scales of norms stay near 1, biases near 0.
                values = values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                values = values * parameter.shape[-1] ** -0.5
            parameter.copy_(values)
    return module.to(options.device, size.torch_dtype)


def _build(
    case: str,
    size: Size,
    mode: str,
    options: Options,
    make: Callable[[GPT2WithMoEConfig], nn.Module],
    make_dense: Callable[[], nn.Module],
    call: Callable[..., torch.Tensor],
) -> Group:
    training = mode == TRAINING
    x_TD, token_ids_T = draw_tokens(size, options)
    shape = batch_shape(size)
    x_BSD, token_ids_BS = x_TD.view(*shape, -1).requires_grad_(), token_ids_T.view(shape)
    grad_BSD = torch.randn(x_BSD.shape, generator=options.generator()).to(x_BSD)

    def arm(name: str, family: str, module: nn.Module) -> Arm:
        module.train(training)
        forward = partial(call, module, x_BSD, token_ids_BS)
        leaves = [x_BSD, *module.parameters()]
        return Arm(
            name,
            family,
            training_step(forward, leaves, grad_BSD) if training else inference_step(forward),
            output=None if family == ROOF else inference_step(forward),
            saved=forward if training else None,
            known=lambda: [x_BSD, *module.parameters(), *module.buffers()],
            flops=expert_flops(size, training) if case == "layer" else 0.0,
        )

    names, skipped = layer_backends(size, options, training)
    arms = []
    for name in names:
        try:
            config = moe_config(size, experts_implementation=name)
            arms.append(arm(name, family_of(name), drawn(partial(make, config), size, options)))
        except ConfigError as error:
            skipped.append(Skipped(name, str(error)))
    roof = drawn(make_dense, size, options)
    arms.append(arm(DENSE, ROOF, roof))
    gradient_bytes = sum(p.numel() * p.element_size() for p in arms[0].known()) if training else 0
    return Group(case, mode, size, arms, skipped, gradient_bytes)


def _dense_ffn(config: GPT2WithMoEConfig) -> nn.Module:
    return DenseFFN(config)


def _block(config: GPT2WithMoEConfig) -> nn.Module:
    return DecoderLayer(config, 0)


def _call_ffn(ffn: Any, x_BSD: torch.Tensor, token_ids_BS: torch.Tensor) -> torch.Tensor:
    return ffn(x_BSD, token_ids_BS)


def _call_block(block: Any, x_BSD: torch.Tensor, token_ids_BS: torch.Tensor) -> torch.Tensor:
    position_ids = torch.arange(x_BSD.shape[1], device=x_BSD.device)[None]
    return block(
        x_BSD,
        token_ids=token_ids_BS,
        attention_mask=None,
        padding_mask=None,
        position_ids=position_ids,
        rotation=None,
        past_key_values=None,
    )
