"""What a layer keeps between calls beside keys and values: named states, in layers that transformers' caches can hold.

A state is any tensor whose first dimension is the batch, such as a recurrent state or the last inputs of a convolution.
Importing this module makes the layer types known to `DynamicCache(config=...)` and `StaticCache(config=...)`. A copy of
it, which an exported model brings along, takes their names; `claim_layer_types` takes them back.
"""

from functools import singledispatch
from typing import Any, ClassVar

import torch
from torch.utils._pytree import SUPPORTED_NODES
from transformers import Cache
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    STATIC_LAYER_TYPE_MAPPING,
    CacheLayerMixin,
    DynamicLayer,
    StaticLayer,
)

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.rows import ChangesRows

# The name under which the first layer without keys counts the padding of each row, (B,).
PADDING = "padding"


class NamedStates(ChangesRows):
    """States of one layer by name; a state that was never written, or was reset, is absent.

    Attributes:
        states: the tensors.
    """

    keeps_place: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.states: dict[str, torch.Tensor] = {}

    def read(self, name: str) -> torch.Tensor | None:
        """The state of that name, or None where nothing was written yet."""
        return self.states.get(name)

    def write(self, name: str, state: torch.Tensor) -> None:
        """Keep a state; its gradient is kept as well, until `detach_states`."""
        if not self.keeps_place:
            self.states[name] = state
        elif name in self.states:
            self.states[name].copy_(state)
        else:
            # Compiled steps read and write the same memory.
            self.states[name] = state.clone()

    def kept(self) -> list[torch.Tensor]:
        """All that is kept beside keys and values, the batch first."""
        return list(self.states.values())

    def change_states(self, change: Any) -> None:
        """Replace each state by `change(state)`."""
        self.states = {name: change(state) for name, state in self.states.items()}

    def offload(self) -> None:
        """Move what is kept to the CPU."""
        if getattr(self, "keys", None) is not None:
            super().offload()  # type: ignore[misc]
        self._home = next((state.device for state in self.states.values()), None)
        self.change_states(lambda state: state.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move what is kept back to where it came from."""
        if getattr(self, "keys", None) is not None:
            super().prefetch()  # type: ignore[misc]
        home = getattr(self, "_home", None)
        if home is not None:
            self.change_states(lambda state: state.to(home, non_blocking=True))

    def reset(self) -> None:
        """Forget everything: an absent state is empty, whatever emptiness means to its mixer."""
        super().reset()  # type: ignore[misc]
        self.states = {}

    def change_rest(self, way: str, argument: Any) -> None:
        """The same for keys and values, where there are any."""
        if getattr(self, "keys", None) is not None:
            super().change_rest(way, argument)

    def crop(self, *_: Any) -> None:
        """Refuse: a state cannot be cut back.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"a {type(self).__name__} keeps a state that cannot be cut back; generate without assisted decoding"
        )


class StateLayer(NamedStates, CacheLayerMixin):
    """A layer without keys and values, which still counts the tokens that it has seen."""

    # By this word `CacheLayerMixin.__init_subclass__` enters the class into the table of `DynamicCache`. Which mixer's
    # layers have it, `moe_hf.config.pattern.CACHE_OF_MIXER` says.
    _layer_type: str | None = "recurrent"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cumulative_length: Any = 0

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of a call; the decoder does it once at the end of each."""
        self.is_initialized = True
        self.cumulative_length = self.cumulative_length + num_tokens

    def reset(self) -> None:
        """As in NamedStates; no keys and values are to be emptied."""
        self.is_initialized = False
        super().reset()

    def get_seq_length(self) -> Any:
        """Tokens seen so far, padding included."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys, as an attention layer that saw the same tokens gives them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no longest sequence."""
        return -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is to be prepared."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Refuse keys and values.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"a {type(self).__name__} keeps no keys and values; make the cache with config=model.config")


class StaticStateLayer(StateLayer):
    """The same with states that stay in their place, for compiled steps."""

    # Inherited, the word would put this class into the table of dynamic caches, in its parent's place.
    _layer_type = None
    is_compileable = True
    keeps_place = True

    def __init__(self, max_cache_len: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_cache_len = max_cache_len
        # A tensor: a compiled step would be compiled anew for each value of a plain number.
        self.cumulative_length = torch.tensor(0)

    def advance(self, num_tokens: int) -> None:
        """As in StateLayer, in place."""
        self.is_initialized = True
        self.cumulative_length += num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys of an attention layer with the same room."""
        return self.max_cache_len, 0

    def get_max_length(self) -> int:
        """The room that attention layers of the same cache have."""
        return self.max_cache_len


class AttentionStateLayer(NamedStates, DynamicLayer):
    """Keys and values, and named states beside them."""

    _layer_type = "attention_with_state"
    is_croppable = False


class StaticAttentionStateLayer(NamedStates, StaticLayer):
    """Keys and values with room for `max_cache_len` tokens, and named states beside them."""

    keeps_place = True


_LAYER_TYPES: dict[str, tuple[type[CacheLayerMixin], type[CacheLayerMixin]]] = {}


def add_layer_type(name: str, dynamic: type[CacheLayerMixin], static: type[CacheLayerMixin]) -> None:
    """Let caches that are made of a configuration have layers of these classes where `layer_types` says `name`."""
    _LAYER_TYPES[name] = (dynamic, static)
    claim_layer_types()


def claim_layer_types() -> None:
    """Let caches that are made next have layers of this module's classes, whoever took their names since."""
    # By hand: transformers itself takes only subclasses of its `StaticLayer` for static, and not all of them are.
    for name, (dynamic, static) in _LAYER_TYPES.items():
        DYNAMIC_LAYER_TYPE_MAPPING[name] = dynamic
        STATIC_LAYER_TYPE_MAPPING[name] = static


add_layer_type("recurrent", StateLayer, StaticStateLayer)
add_layer_type("attention_with_state", AttentionStateLayer, StaticAttentionStateLayer)


def states_of(cache: Cache | None, layer_idx: int) -> NamedStates | None:
    """Where a layer reads and writes its states; None without a cache.

    Raises:
        ConfigError: the cache was made without the model's configuration and has no place for them.
    """
    if cache is None:
        return None
    layers = cache.layers
    layer = layers[layer_idx] if layer_idx < len(layers) else None
    if not isinstance(layer, NamedStates):
        raise ConfigError(
            f"this {type(cache).__name__} has no place for the state of layer {layer_idx}; make it with "
            "config=model.config, or give none"
        )
    return layer


def advance(cache: Cache | None, num_tokens: int, mask_BS: torch.Tensor | None = None) -> None:
    """Tell the layers without keys and values that a call with so many tokens is over.

    Args:
        cache: of the model; None does nothing.
        num_tokens: S, padding included.
        mask_BS: zero at padding; None where there was none.
    """
    layers = [layer for layer in (cache.layers if cache is not None else []) if isinstance(layer, StateLayer)]
    for layer in layers:
        layer.advance(num_tokens)
    # A compiled step is given its positions.
    if layers and mask_BS is not None and not torch.compiler.is_compiling():
        before_B, padding_B = layers[0].read(PADDING), (mask_BS == 0).sum(dim=1)
        layers[0].write(PADDING, padding_B if before_B is None else before_B + padding_B)


def padding_seen(cache: Cache | None) -> torch.Tensor | None:
    """Padding that each row has had so far, (B,), as far as `advance` was told; None where it was told of none."""
    layers = [layer for layer in (cache.layers if cache is not None else []) if isinstance(layer, StateLayer)]
    return layers[0].read(PADDING) if layers else None


def has_seen(cache: Cache | None) -> bool:
    """Whether a call that is given it goes on from earlier ones."""
    if cache is None:
        return False
    seen = cache.get_seq_length()
    # A compiler cannot look into a static cache's counter; it is compiled for decoding.
    return bool(seen > 0) if isinstance(seen, int) or not torch.compiler.is_compiling() else True


def hindrance_of(cache: Cache | None, attends: bool) -> str | None:
    """What keeps a call's documents from being told apart, if the cache does; a static one does where layers attend."""
    if has_seen(cache):
        return "a filled cache"
    return "a static cache" if attends and cache is not None and cache.is_compileable else None


@singledispatch
def rows_of(cache: Cache) -> int | None:
    """Rows of what the cache holds; None while it holds nothing."""
    for layer in cache.layers:
        states = layer.kept() if isinstance(layer, NamedStates) else []
        keys = getattr(layer, "keys", None)
        if keys is not None and keys.numel():
            states = [*states, keys]
        if states:
            return len(states[0])
    return None


def require_rows(cache: Cache | None, batch: int) -> None:
    """Do nothing where a call of so many rows goes on from the cache, or begins it.

    Raises:
        ConfigError: the cache holds another number of rows, which would be mixed up or taken for one.
    """
    rows = None if cache is None else rows_of(cache)
    if rows not in (None, batch):
        raise ConfigError(
            f"a cache of {rows} rows is not allowed for {batch} rows; give as many rows, a new cache, or change its "
            "rows by batch_repeat_interleave or batch_select_indices"
        )


def unless_exporting(cache: Any) -> Any:
    """The cache itself.

    Raises:
        ConfigError: torch.export is at work, and could not hold such a cache.
    """
    has_named_states = any(isinstance(layer, NamedStates) for layer in cache.layers)
    if torch.compiler.is_exporting() and (has_named_states or type(cache) not in SUPPORTED_NODES):
        raise ConfigError(
            f"torch.export cannot return the {type(cache).__name__} of this model; give use_cache=False to the call "
            "that is exported"
        )
    return cache


@singledispatch
def detach_states(cache: Cache) -> None:
    """Cut the gradient between what the cache holds and the calls that it came from (truncated backpropagation)."""
    for layer in cache.layers:
        if isinstance(layer, NamedStates):
            layer.change_states(torch.Tensor.detach)
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                setattr(layer, name, tensor.detach())
