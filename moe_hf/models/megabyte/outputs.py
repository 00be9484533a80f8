"""Joins what MegaByte's two decoders recorded into one output, byte by byte.

Shapes: B batch, K patches, P bytes per patch, L width of the local decoder, E experts, k slots.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import MoeModelOutputWithPast

from moe_hf.layers.caches.host import named
from moe_hf.layers.caches.megabyte import MegaByteCache, Routing

ROUTING = ("router_logits", "router_experts")
"""What routers say about each token."""
RECORDINGS = (*ROUTING, "router_dropped", "hidden_states", "attentions")
"""What can be recorded."""


class PatchContext(NamedTuple):
    """What the global model gives to each place of each patch, (B, K, P, L), and how it came to it.

    `routing` holds what its routers said about each patch, (B, K, E) or (B, K, k) per sparse layer; `outputs` is None
    where no patch was finished.
    """

    context_BKPL: torch.Tensor
    routing: Routing
    outputs: MoeModelOutputWithPast | None


def recordings(given: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, bool]:
    """Which recordings are asked for, by keyword arguments or else by the configuration, as "output_..."."""
    return {
        f"output_{name}": bool(given.get(f"output_{name}", getattr(config, f"output_{name}", False)))
        for name in RECORDINGS
    }


def routing_of(outputs: MoeModelOutputWithPast, batch: int) -> Routing:
    """What a decoder over B rows recorded of its routers, (B, K, E) or (B, K, k) per sparse layer."""
    return {name: [x.unflatten(0, (batch, -1)) for x in outputs.get(name) or ()] for name in ROUTING}


def joined(
    local: MoeModelOutputWithPast,
    patches: MoeModelOutputWithPast | None,
    routing: Routing,
    cache: MegaByteCache | None,
    wanted: dict[str, bool],
    at_bytes: Callable[[torch.Tensor], torch.Tensor],
    of_places: Callable[[torch.Tensor], torch.Tensor],
) -> MoeModelOutputWithPast:
    """The output of both decoders.

    Args:
        local: of the local decoder.
        patches: of the global one, which may have read nothing.
        routing: what the global routers said, byte by byte.
        cache: to be handed on.
        wanted: recordings, by keyword argument.
        at_bytes, of_places: make what the local decoder says of places, and its routers of all places, byte by byte.
    """
    hidden: Any = local.last_hidden_state
    out = MoeModelOutputWithPast(last_hidden_state=at_bytes(hidden), **named(cache))
    if wanted["output_hidden_states"]:
        out["hidden_states"] = tuple(at_bytes(x) for x in local.hidden_states or ())
    for name in ROUTING:
        if wanted[f"output_{name}"]:
            out[name] = (*routing[name], *(of_places(x) for x in local.get(name) or ()))
    for name in ("attentions", "router_dropped"):
        if wanted[f"output_{name}"]:
            out[name] = (*((patches.get(name) or ()) if patches is not None else ()), *(local.get(name) or ()))
    return out
