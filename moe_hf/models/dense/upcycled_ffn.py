"""Makes the feed-forward network of an upcycled layer, dense or sparse, from a dense one or from nothing.

Shapes: E experts, D width, F width of the FFN.
"""

from collections.abc import Mapping

import torch

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers import ROUTERS, LearnedRouter, Router
from moe_hf.models.dense.expert_init import FFNParameter, StackedExperts, expert_recipe, router_rows, seed_of
from moe_hf.models.dense.lazy_tensors import Drawn, Held, Joined, LazyTensor, zeros

# The dimension that counts the FFN's units; None for the output bias, which belongs to no unit.
_UNIT_DIMS = {
    "gate_proj.weight": 0,
    "gate_proj.bias": 0,
    "up_proj.weight": 0,
    "up_proj.bias": 0,
    "down_proj.weight": 1,
    "down_proj.bias": None,
}


def ffn_from_dense(
    ffn: Mapping[str, LazyTensor], config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None, prefix: str = "mlp."
) -> dict[str, LazyTensor]:
    """The layer's FFN by the names of this package: the dense one itself, or experts made of it and a router.

    Args:
        ffn: `up_proj.weight` (F, D), `down_proj.weight` (D, F), and `gate_proj.weight` and biases if there are any.
        config: of the model to build.
        layer: index of the layer.
        dtype: type of the experts' stacks; None is that of the dense weights.
        prefix: of the names within the layer.
    """
    if layer not in config.sparse_layers:
        return {f"{prefix}{name}": value for name, value in ffn.items()}
    # A width that is no such part is reported with all else that does not fit.
    granularity = max(1, config.ffn_width // config.expert_width)
    recipe = expert_recipe(config, dtype, granularity)
    stacks: dict[str, LazyTensor] = {}
    for name, value in ffn.items():
        part = FFNParameter(layer, name, _UNIT_DIMS[name], granularity if name == "down_proj.weight" else 1.0)
        stacks[name] = StackedExperts(value, config.num_experts, part, recipe)
    return _sparse(stacks, config, layer, prefix, granularity)


def fresh_ffn(
    config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None, prefix: str = "mlp."
) -> dict[str, LazyTensor]:
    """The layer's norm and FFN where the dense model has none; empty where the model to build has none either.

    Its output starts at zero, so that the function is kept.
    """
    if config.ffn_of_layer[layer] == "none":
        return {}
    sparse = layer in config.sparse_layers
    width, inner = config.hidden_size, config.expert_width if sparse else config.ffn_width
    shapes: dict[str, tuple[int, ...]] = {"up_proj.weight": (inner, width), "down_proj.weight": (width, inner)}
    if config.mlp_gated:
        shapes["gate_proj.weight"] = (inner, width)
    if config.mlp_bias:
        shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    made: dict[str, LazyTensor] = {}
    for name, shape in shapes.items():
        std = 0.0 if name.startswith("down") or name.endswith("bias") else config.initializer_range
        made[name] = Drawn(
            (config.num_experts, *shape) if sparse else shape, std, seed_of(config.expert_init_seed, layer, name)
        )
    named = _sparse(made, config, layer, prefix) if sparse else {f"{prefix}{name}": x for name, x in made.items()}
    return {"post_attention_layernorm.weight": _Ones(width), **named}


class _Ones(LazyTensor):
    def __init__(self, size: int) -> None:
        super().__init__((size,), "F32")

    def read(self) -> torch.Tensor:
        return torch.ones(self.shape)


def _sparse(
    stacks: dict[str, LazyTensor], config: MoEDecoderConfig, layer: int, prefix: str, granularity: int = 1
) -> dict[str, LazyTensor]:
    width, seed = config.hidden_size, config.expert_init_seed
    for kind in ("weight", "bias"):
        if f"gate_proj.{kind}" in stacks:
            # One stack of both, the gate first, under the name that transformers' experts interface reads.
            halves = [stacks.pop(f"{half}_proj.{kind}") for half in ("gate", "up")]
            stacks[f"gate_up_proj.{kind}"] = Joined(halves, dim=1)
    state = {
        f"{prefix}experts.{name.replace('.weight', '').replace('.bias', '_bias')}": value
        for name, value in stacks.items()
    }
    router = ROUTERS[config.router_of_layer(layer)]
    if issubclass(router, LearnedRouter):
        router_std = config.initializer_range if config.router_init == "random" else 0.0
        gate_seed = seed_of(seed, layer, "gate")
        state[f"{prefix}gate.weight"] = router_rows(config.num_experts, width, router_std, gate_seed, granularity)
    state |= {f"{prefix}gate.{name}": Held(buffer) for name, buffer in _fresh_states(router, config).items()}
    shared = config.shared_expert_intermediate_size
    if shared:
        state |= _shared_expert(config, shared, layer, prefix)
    return state


def _shared_expert(config: MoEDecoderConfig, shared: int, layer: int, prefix: str) -> dict[str, LazyTensor]:
    # Its output starts at zero, so that the function is kept.
    width, std = config.hidden_size, config.initializer_range
    state: dict[str, LazyTensor] = {}
    for half in ("gate", "up") if config.mlp_gated else ("up",):
        words = (config.expert_init_seed, layer, "shared") + (("gate",) if half == "gate" else ())
        state[f"{prefix}shared_expert.{half}_proj.weight"] = Drawn((shared, width), std, seed_of(*words))
        if config.mlp_bias:
            state[f"{prefix}shared_expert.{half}_proj.bias"] = zeros((shared,))
    state[f"{prefix}shared_expert.down_proj.weight"] = zeros((width, shared))
    if config.mlp_bias:
        state[f"{prefix}shared_expert.down_proj.bias"] = zeros((width,))
    if config.shared_expert_gate:
        state[f"{prefix}shared_expert_gate.weight"] = zeros((1, width))
    return state


def _fresh_states(router: type[Router], config: MoEDecoderConfig) -> dict[str, torch.Tensor]:
    # The router's weight is drawn on the way and thrown away: neither that nor a device that holds no values may show.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return dict(router.from_config(config).named_buffers())
