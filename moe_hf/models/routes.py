"""Freezes routers, records the experts they chose, and replays them.

Shapes: B batch, S positions, K experts per token, V vocabulary ids.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Cache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.host import CACHE_NAME, one_cache
from moe_hf.layers.ffn.routers import HashRouter, Router
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.router_states import routers_of
from moe_hf.ops.routing.hashing import balanced_hash_table


def freeze_routers(model: nn.Module, frozen: bool = True) -> None:
    """Take the routers' weights out of training, or put them back."""
    for router in routers_of(model):
        router.requires_grad_(not frozen)


def force_balanced(model: nn.Module, forced: bool = True) -> None:
    """Let experts be dealt out in turn instead of chosen, so that a benchmark does not depend on what was learnt."""
    for router in routers_of(model):
        router.force_balanced = forced


def balance_hash_routers(model: nn.Module, token_counts: torch.Tensor) -> None:
    """Give each hash router a table that spreads these ids evenly (Roller et al. 2021); it is saved with the model.

    Args:
        model: at least one of its layers is hash-routed.
        token_counts: (V,) how often each id occurs in the training data.

    Raises:
        ConfigError: no layer is hash-routed, or there are not V counts.
    """
    routers = [router for router in routers_of(model) if isinstance(router, HashRouter)]
    if not routers:
        raise ConfigError(
            f'no layer is hash-routed in this {type(model).__name__}; set router_type="hash" or router_num_hash_layers'
        )
    for router in routers:
        table_VK = router.expert_of_id
        if table_VK is None or len(table_VK) != len(token_counts):
            size = None if table_VK is None else len(table_VK)
            raise ConfigError(f"got {len(token_counts)} token counts; the router's vocabulary has {size} ids")
        k = router.num_experts_per_tok
        table_VK.copy_(balanced_hash_table(token_counts, router.num_experts, k, router.seed))


class RecordedRoutes:
    """The experts of every forward so far: per sparse layer (B, S, K), the forwards joined along S.

    So the prompt and the single steps of one generation give the routes of the whole text. Empty slots hold E.

    Attributes:
        num_rows: B, 0 before the first forward.
        num_positions: S so far.
    """

    def __init__(self) -> None:
        self._pieces: list[list[torch.Tensor]] = []
        self.num_rows = 0
        self.num_positions = 0

    def add(self, layers: Sequence[torch.Tensor], num_rows: int, num_positions: int) -> None:
        """Append what one forward of B rows and S positions chose, (B * S, K) per sparse layer."""
        shape_BS = (num_rows, num_positions)
        self._pieces.append([expert_TK.detach().unflatten(0, shape_BS) for expert_TK in layers])
        self.num_rows = num_rows
        self.num_positions += num_positions

    @property
    def layers(self) -> list[torch.Tensor]:
        """(B, S, K) experts per sparse layer.

        Raises:
            ConfigError: nothing was recorded.
        """
        if not self._pieces:
            raise ConfigError(
                "no routes were recorded; call the model inside `with record_routes(model)`, and not one that was "
                "compiled before: compiled code looks for no new hooks"
            )
        return [torch.cat(pieces, dim=1) for pieces in zip(*self._pieces, strict=True)]


@contextmanager
def record_routes(model: nn.Module) -> Iterator[RecordedRoutes]:
    """Take down which experts the routers choose in the forwards inside the `with`, which must continue one text.

    Rollouts of reinforcement learning record here and train under `replay_routes`, so that both pass through the same
    experts (Ma et al. 2025, 2510.11370, Rollout Routing Replay). Beam search and assisted decoding throw away what
    they computed, so they cannot be recorded: sample, or decode greedily.

    Args:
        model: with one skeleton of this package.

    Raises:
        ConfigError: here if the model is of another kind; from a forward, or at the end, if the forwards cannot be
            joined: another number of rows, a cache that holds more or fewer positions than were recorded (as for a
            second text, without a cache, or after assisted decoding), or a cache whose rows are reordered.
    """
    skeletons = [module for module in model.modules() if isinstance(module, MoEDecoderModel)]
    if len(skeletons) != 1:
        raise ConfigError(
            f"got a {type(model).__name__} with {len(skeletons)} skeletons of this package; give a model with one"
        )
    recorder = _Recorder()
    handles = [
        skeletons[0].register_forward_pre_hook(recorder.before, with_kwargs=True),
        skeletons[0].register_forward_hook(recorder.after),
    ]
    try:
        yield recorder.recorded
        recorder.require_whole_cache()
    finally:
        for handle in handles:
            handle.remove()
        recorder.let_go_of_cache()


class _Recorder:
    """Reads the outputs of the whole skeleton, so that a layer which checkpointing runs twice counts once."""

    def __init__(self) -> None:
        self.recorded = RecordedRoutes()
        self._cache: Cache | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # By position or by name: a hook gets the two apart.
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        rows, positions = self.recorded.num_rows, self.recorded.num_positions
        if rows and tokens is not None and len(tokens) != rows:
            raise ConfigError(
                f"{rows} rows are recorded, but this forward has {len(tokens)}; record one batch at a time"
            )
        cache = one_cache(given.get("cache"), given.get("past_key_values"))
        past = _length(cache)
        if past != positions:
            raise ConfigError(
                f"{positions} positions are recorded, but this forward comes after {past}, so their routes cannot be "
                "joined; record one text from its start, with use_cache=True and without assisted decoding"
            )
        if past and cache is not self._cache:
            raise ConfigError(
                f"this forward has another cache than the {positions} positions that are recorded; record one text"
            )
        return args, {**kwargs, "output_router_experts": True}

    def after(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        if not isinstance(outputs, Mapping):
            raise ConfigError(
                f"return_dict=False leaves no room for routes in a {type(outputs).__name__}; record with "
                "return_dict=True"
            )
        self.recorded.add(outputs["router_experts"], *outputs["last_hidden_state"].shape[:2])
        cache = outputs.get(CACHE_NAME)
        if cache is not None and self._cache is None:
            self._cache = cache
            # Which beam a row continues is told to the cache alone.
            cache.__dict__["reorder_cache"] = _refuse_beams

    def require_whole_cache(self) -> None:
        # What the last forward of assisted decoding guessed wrong, no later forward can show.
        positions = self.recorded.num_positions
        if self._cache is not None and _length(self._cache) != positions:
            raise ConfigError(
                f"{positions} positions are recorded, but the cache holds {_length(self._cache)}: it was cut back; "
                "record without assisted decoding"
            )

    def let_go_of_cache(self) -> None:
        if self._cache is not None:
            self._cache.__dict__.pop("reorder_cache", None)
        self._cache = None


def _length(cache: Cache | None) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _refuse_beams(beam_idx: torch.Tensor) -> None:
    raise ConfigError(
        f"beam search reorders its {len(beam_idx)} rows and cannot be recorded; sample or decode greedily (num_beams=1)"
    )


@contextmanager
def replay_routes(model: nn.Module, layers: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let every forward inside the `with` use these experts; weights still come from the routers' own logits.

    Args:
        model: forwards of it take B sequences of S tokens.
        layers: (B, S, K) experts per sparse layer, E for an empty slot, such as `RecordedRoutes.layers`.

    Raises:
        ConfigError: there are not as many entries as sparse layers, or one is not of that shape or not of experts; from
            a forward, if it is of another number of tokens.
    """
    routers = routers_of(model)
    if len(routers) != len(layers):
        raise ConfigError(f"got routes of {len(layers)} layers for {len(routers)} routers; give one entry per router")
    for index, (router, expert_BSK) in enumerate(zip(routers, layers, strict=True)):
        _require_routes(index, router, expert_BSK)
    sizes = list(dict.fromkeys(tuple(expert_BSK.shape[:2]) for expert_BSK in layers))
    if len(sizes) > 1:
        raise ConfigError(
            f"got routes of {' and of '.join(map(str, sizes))} tokens; give the same (B, S) for every router"
        )
    for router, expert_BSK in zip(routers, layers, strict=True):
        router.fixed_expert_TK = expert_BSK.flatten(0, 1)
    try:
        yield
    finally:
        for router in routers:
            router.fixed_expert_TK = None


def _require_routes(index: int, router: Router, expert_BSK: torch.Tensor) -> None:
    if expert_BSK.ndim != 3 or expert_BSK.dtype != torch.long:
        raise ConfigError(
            f"got routes of shape {tuple(expert_BSK.shape)} and {expert_BSK.dtype} for router {index}; give (B, S, K) "
            "in torch.int64, as `RecordedRoutes.layers` does"
        )
    if expert_BSK.numel() and not 0 <= expert_BSK.min() <= expert_BSK.max() <= router.num_experts:
        raise ConfigError(
            f"got experts from {expert_BSK.min()} to {expert_BSK.max()} for router {index}; they must be in "
            f"[0, {router.num_experts}], where {router.num_experts} is an empty slot"
        )
