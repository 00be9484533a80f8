"""Makes single layers of every mixer, and those of transformers with the same weights, ready to be called.

Shapes: B batch, S positions, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, Mamba2Config, MambaConfig, RwkvConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import Registry
from moe_hf.bench.mixers.cases import Arm
from moe_hf.layers.caches.host import MAMBA_CACHE_NAME
from moe_hf.layers.caches.states import advance
from moe_hf.layers.mixers.base import Mixer
from moe_hf.models.auto import FAMILIES

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


class Layer:
    """One layer of a mixer, called as the decoder calls it.

    Args:
        kind: a name of `KINDS`.
        width: of the residual stream, a multiple of 64.
        **fields: of the configuration, beside those of the kind.
    """

    def __init__(self, kind: str, width: int, **fields: Any) -> None:
        model_type, own = KINDS[kind]
        family = FAMILIES[model_type]
        config = family.config(
            **{
                "vocab_size": 8,
                "hidden_size": width,
                "num_hidden_layers": 1,
                "num_attention_heads": width // 64,
                "intermediate_size": 8,
                "mlp_layer_types": ["dense"],
                "max_position_embeddings": LONGEST + 1024,
                "position_embedding_type": "none",
                "bos_token_id": None,
                "eos_token_id": None,
                "pad_token_id": None,
                **own,
                **fields,
            }
        )
        torch.manual_seed(_SEED)
        self.model: Any = family.model(config).eval()
        self.mixer: Mixer = self.model.layers[0].mixer
        self.width = width

    def __call__(self, x_BSD: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """The mixed tokens (B, S, D); they come after those that the cache has seen."""
        seen = int(cache.get_seq_length()) if cache is not None else 0
        length = x_BSD.shape[1]
        out_BSD = self.mixer(
            x_BSD,
            attention_mask=None,
            padding_mask=None,
            document_starts=None,
            position_ids=torch.arange(seen, seen + length)[None],
            rotation=None,
            past_key_values=cache,
            shared_values={},
        ).out_BSD
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
        state_size=config.mamba_states,
        expand=config.mamba_expand,
        num_hidden_layers=1,
        time_step_rank=config.mamba_rank,
    )


def _mamba2_config(config: Any) -> Mamba2Config:
    return Mamba2Config(
        hidden_size=config.hidden_size,
        state_size=config.mamba_states,
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


def forward_arm(name: str, call: Callable[[torch.Tensor], torch.Tensor], x_BSD: torch.Tensor, **fields: Any) -> Arm:
    """A call without gradients."""

    def step() -> torch.Tensor:
        with torch.no_grad():
            return call(x_BSD)

    return Arm(name, step, **{"output": step, **fields})


def training_arm(name: str, call: Callable[[torch.Tensor], torch.Tensor], x_BSD: torch.Tensor, **fields: Any) -> Arm:
    """Forward and backward; the result is the gradient of the tokens, those of the weights add up."""

    def step() -> torch.Tensor:
        leaf = x_BSD.clone().requires_grad_()
        call(leaf).square().mean().backward()
        if leaf.grad is None:
            raise RuntimeError(f"{name} gives its input no gradient")
        return leaf.grad

    return Arm(name, step, **{"output": step, **fields})


@contextmanager
def exchanged(module: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """A mixer's module with another form of an operation under its name."""
    kept = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, kept)


def with_other_form(
    call: Callable[[torch.Tensor], torch.Tensor], module: ModuleType, name: str, function: Callable[..., Any]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer with `function` in the place of the operation `name` that its module uses."""

    def exchanged_call(x_BSD: torch.Tensor) -> torch.Tensor:
        with exchanged(module, name, function):
            return call(x_BSD)

    return exchanged_call
