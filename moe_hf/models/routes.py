"""Freezes routers, records the experts they chose, and replays them.

Shapes: B batch, S positions, K experts per token, V vocabulary ids.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moe_hf.base.errors import ConfigError
from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.ffn.routers import HashRouter
from moe_hf.models.router_states import routers_of
from moe_hf.ops.hashing import balanced_hash_table


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
        raise ConfigError('no layer is hash-routed; set router_type="hash" or router_num_hash_layers')
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
    """

    def __init__(self, num_layers: int) -> None:
        self._pieces: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]

    def add(self, layer: int, expert_BSK: torch.Tensor) -> None:
        """Append what one forward of a layer chose."""
        self._pieces[layer].append(expert_BSK.detach())

    @property
    def layers(self) -> list[torch.Tensor]:
        """(B, S, K) experts per sparse layer.

        Raises:
            ConfigError: nothing was recorded, or the forwards were of different batches.
        """
        if not all(self._pieces):
            raise ConfigError("no routes were recorded; call the model inside `with record_routes(model)`")
        sizes = {len(piece) for pieces in self._pieces for piece in pieces}
        if len(sizes) > 1:
            raise ConfigError(f"the recorded forwards had batches of {sorted(sizes)} rows; record one batch at a time")
        return [torch.cat(pieces, dim=1) for pieces in self._pieces]


@contextmanager
def record_routes(model: PreTrainedModel) -> Iterator[RecordedRoutes]:
    """Take down which experts the routers choose in every forward inside the `with`.

    Rollouts of reinforcement learning record here and train under `replay_routes`, so that both pass through the same
    experts (Ma et al. 2025, 2510.11370, Rollout Routing Replay).
    """
    sparse = [module for module in model.modules() if isinstance(module, SparseFFN)]
    recorded = RecordedRoutes(len(sparse))
    batch_size = [0]

    def remember_batch(module: nn.Module, args: tuple[Any, ...]) -> None:
        batch_size[0] = len(args[0])

    def take_down(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            recorded.add(layer, output.expert_TK.unflatten(0, (batch_size[0], -1)))

        return hook

    handles: list[Any] = []
    for layer, ffn in enumerate(sparse):
        handles.append(ffn.register_forward_pre_hook(remember_batch))
        handles.append(ffn.gate.register_forward_hook(take_down(layer)))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replay_routes(model: PreTrainedModel, layers: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let every forward inside the `with` use these experts; weights still come from the routers' own logits.

    Args:
        model: forwards of it take B sequences of S tokens.
        layers: (B, S, K) experts per sparse layer, such as `RecordedRoutes.layers`.

    Raises:
        ConfigError: there are not as many entries as sparse layers.
    """
    routers = routers_of(model)
    if len(routers) != len(layers):
        raise ConfigError(f"got routes of {len(layers)} layers for {len(routers)} routers; give one entry per router")
    for router, expert_BSK in zip(routers, layers, strict=True):
        router.fixed_expert_TK = expert_BSK.flatten(0, 1)
    try:
        yield
    finally:
        for router in routers:
            router.fixed_expert_TK = None
