"""Makes single layers of every mixer, and those of transformers with the same weights, ready to be called.

Shapes: B batch, S positions, D width.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, Cache, DynamicCache, Mamba2Config, MambaConfig, RwkvConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import Registry
from moe_hf.bench.harness.arms import TRAINING, Arm, Check, Group, Options
from moe_hf.bench.harness.cases import Case, Goal
from moe_hf.bench.mixers.sizes import LayerSize
from moe_hf.layers.caches.host import MAMBA_CACHE_NAME
from moe_hf.layers.caches.states import advance
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import Mixer

ATTENTION = "attention (sdpa)"
BLOCKS = "attention (topk_block)"
KINDS: Registry[tuple[str, dict[str, Any]]] = Registry(
    "kind of mixer",
    {
        ATTENTION: ("gpt2_moe", {"attn_implementation": "sdpa"}),
        BLOCKS: ("gpt2_moe", {"attn_implementation": "topk_block"}),
        "RetNet": ("retnet_moe", {}),
        "Mamba-1": ("mamba_moe", {"mamba_version": 1}),
        "Mamba-2": ("mamba_moe", {"mamba_version": 2}),
        "Hyena": ("hyena_moe", {}),
        "RWKV-4": ("rwkv_moe", {"rwkv_version": 4}),
        "RWKV-7": ("rwkv_moe", {"rwkv_version": 7}),
    },
)
"""Name in the tables -> model type and fields; heads are 64 wide in all of them that have heads of attention."""

LONGEST = 2**15
_SEED = 0
OWN, HOST = "moe_hf", "transformers"
MOST_ERROR = 1e-3
"""The relative error between arms of one case that float32 explains over thousands of tokens."""


def layer_case(
    name: str, mode: str, size: LayerSize, build: Callable[[], list[Arm]], *goals: Goal, memory: bool = False
) -> Case:
    """A case whose arms must equal its first one; with `memory` what a call holds is counted instead of its time."""

    def held_against_the_first(options: Options) -> Group:
        arms = build()
        # No form is the reference by itself; what matters is that all compute the same.
        checked = [arm for arm in arms if arm.check is not None]
        for index, arm in enumerate(arms):
            if arm.check is not None and checked[0].check is not None:
                other = Check(arm.check.output, checked[0].check.output, MOST_ERROR)
                arms[index] = arm._replace(check=None if arm is checked[0] else other)
        return Group(arms)

    mode = f"{mode}, memory" if memory else mode
    return Case(name, mode, size, held_against_the_first, goals, timed=not memory, memory=memory)


def same(output: Callable[[], torch.Tensor]) -> Check:
    """What an arm computes; `layer_case` says which arm it must equal."""
    return Check(lambda: [output()], lambda: [output()])


class Layer:
    """One layer of a mixer, called as the decoder calls it.

    Args:
        kind: a name of `KINDS`.
        width: of the residual stream, a multiple of 64.
        **fields: of the configuration, beside those of the kind.
    """

    def __init__(self, kind: str, width: int, **fields: Any) -> None:
        model_type, own = KINDS[kind]
        config = AutoConfig.for_model(
            model_type,
            **{
                # Next to nothing beside the mixer, which alone is called.
                "vocab_size": 8,
                "hidden_size": width,
                "num_hidden_layers": 1,
                "num_attention_heads": width // 64,
                "intermediate_size": 8,
                "mlp_layer_types": ["dense"],
                # With room for what is decoded behind the longest context.
                "max_position_embeddings": LONGEST + 1024,
                "position_embedding_type": "none",
                "bos_token_id": None,
                "eos_token_id": None,
                "pad_token_id": None,
                **own,
                **fields,
            },
        )
        # All forms of a kind draw the same weights, so that their results can be compared.
        torch.manual_seed(_SEED)
        self.model: Any = AutoModel.from_config(config).eval()
        self.mixer: Mixer = self.model.layers[0].mixer
        self.width = width

    def __call__(self, x_BSD: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """The mixed tokens (B, S, D); they come after those that the cache has seen."""
        seen = int(cache.get_seq_length()) if cache is not None else 0
        length = x_BSD.shape[1]
        inputs = LayerInputs(position_ids=torch.arange(seen, seen + length)[None], cache=cache)
        out_BSD = self.mixer(x_BSD, inputs).out_BSD
        advance(cache, length)
        return out_BSD

    def cache_after(self, x_BSD: torch.Tensor) -> Cache:
        """A cache that has seen these tokens."""
        cache = self.model.new_cache()
        with torch.no_grad():
            self(x_BSD, cache)
        return cache


def drawn(length: int, width: int) -> torch.Tensor:
    """Tokens of one sequence (1, S, D), the same each time."""
    return torch.randn(1, length, width, generator=torch.Generator().manual_seed(_SEED))


def transformers_layer(layer: Layer) -> Callable[..., torch.Tensor]:
    """transformers' own layer of the same kind with the same weights; called with tokens, and a cache if it decodes.

    Raises:
        ConfigError: transformers has none of this kind.
    """
    mixer: Any = layer.mixer
    config, weights = mixer.config, mixer.state_dict()
    module: nn.Module
    if type(mixer).__name__ == "Mamba1":
        module = MambaMixer(_mamba_config(config), layer_idx=0)
    elif type(mixer).__name__ == "Mamba2":
        module = Mamba2Mixer(_mamba2_config(config), layer_idx=0)
    elif type(mixer).__name__ == "RWKV4":
        # Bound to its own cache format, which no arm here needs.
        module = RwkvSelfAttention(RwkvConfig(hidden_size=layer.width, context_length=LONGEST), layer_id=0)
        names = {"r_proj.": "receptance.", "k_proj.": "key.", "v_proj.": "value.", "o_proj.": "output."}
        weights = {_renamed(name, names): weight for name, weight in weights.items()}
        weights = {name: w.view(1, 1, -1) if "time_mix" in name else w for name, w in weights.items()}
    else:
        raise ConfigError(f"transformers has no layer like {type(mixer).__name__}; it has Mamba-1, Mamba-2 and RWKV-4")
    module.load_state_dict(weights)
    module.eval()

    def call(x_BSD: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        found = module(x_BSD) if cache is None else module(x_BSD, **{MAMBA_CACHE_NAME: cache})
        return found[0] if isinstance(found, tuple) else found

    return call


def transformers_cache(layer: Layer) -> Cache:
    """An empty cache for `transformers_layer` of a Mamba."""
    config: Any = layer.mixer.config
    return DynamicCache(config=_mamba_config(config) if config.mamba_version == 1 else _mamba2_config(config))


def _mamba_config(config: Any) -> MambaConfig:
    return MambaConfig(
        hidden_size=config.hidden_size,
        state_size=config.mamba_state_width,
        expand=config.mamba_expand,
        num_hidden_layers=1,
        time_step_rank=config.mamba_rank,
    )


def _mamba2_config(config: Any) -> Mamba2Config:
    return Mamba2Config(
        hidden_size=config.hidden_size,
        state_size=config.mamba_state_width,
        expand=config.mamba_expand,
        num_hidden_layers=1,
        num_heads=config.mamba_num_heads,
        head_dim=config.mamba_head_dim,
        n_groups=config.mamba_num_groups,
        layer_norm_epsilon=config.layer_norm_epsilon,
    )


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def layer_arm(
    mode: str, name: str, call: Callable[[torch.Tensor], torch.Tensor], x_BSD: torch.Tensor, **fields: Any
) -> Arm:
    """A call without gradients, or in training forward and backward, whose result is the gradient of the tokens.

    Those of the weights add up. An arm that is timed once is not compared.
    """
    step = partial(_gradient, name, call, x_BSD) if mode == TRAINING else partial(torch.no_grad()(call), x_BSD)
    check = None if fields.get("once") else same(step)
    return Arm(name, step, **{"check": check, **fields})


def _gradient(name: str, call: Callable[[torch.Tensor], torch.Tensor], x_BSD: torch.Tensor) -> torch.Tensor:
    # A fresh leaf each time; weights keep adding up, which costs every arm the same and is never read.
    leaf = x_BSD.clone().requires_grad_()
    call(leaf).square().mean().backward()
    if leaf.grad is None:
        raise RuntimeError(f"{name} gives its input no gradient")
    return leaf.grad


def with_other_form(
    call: Callable[[torch.Tensor], torch.Tensor], module: ModuleType, name: str, function: Callable[..., Any]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer with `function` in the place of the operation `name` that its module uses, while it is called."""

    def exchanged_call(x_BSD: torch.Tensor) -> torch.Tensor:
        # During the call alone: the other arms of the case use the same module.
        kept = getattr(module, name)
        setattr(module, name, function)
        try:
            return call(x_BSD)
        finally:
            setattr(module, name, kept)

    return exchanged_call
