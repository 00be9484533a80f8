"""Has the states of a model's routers saved with peft's adapters: what training moves beside the weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_hf.base.optional import require
from moe_hf.layers.ffn.routers import LoadLearner


class RouterState(NamedTuple):
    """A buffer that training moves, and the module that holds it."""

    owner: nn.Module
    name: str

    @property
    def value(self) -> torch.Tensor:
        """The buffer."""
        value: torch.Tensor = getattr(self.owner, self.name)
        return value


def router_states_in(model: nn.Module) -> list[RouterState]:
    """The states of a model of this package."""
    return [RouterState(module, module.state_name) for module in model.modules() if isinstance(module, LoadLearner)]


def save_states_with_adapters(model: nn.Module, states: Sequence[RouterState]) -> None:
    """Let peft write correction biases and thresholds into the files of every adapter that `model` carries.

    peft saves what belongs to an adapter and what its wrappers of whole modules name. Each owner gets such a wrapper
    around nothing, as a child with the adapter's name, which peft takes out of the names in the file. So they are those
    of the model's own buffers, and peft loads them like any other tensor of the model.
    """
    # peft leaves it on the model that it wraps, and takes it away again with its layers.
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        return
    wrapper: Any = require("peft", "saving adapters").utils.ModulesToSaveWrapper
    # Of a router that is trained and saved whole, peft keeps the state by itself.
    whole = {part for module in model.modules() if isinstance(module, wrapper) for part in module.modules()}
    for state in states:
        for name in adapters if state.owner not in whole else ():
            saver = wrapper(nn.Identity(), name)
            saver.set_adapter(name)
            saver.adapter_state_dict = partial(_saved, state, name)
            state.owner.add_module(name, saver)


def _saved(state: RouterState, of: str, adapter: str, state_dict: dict[str, Any]) -> dict[str, torch.Tensor]:
    """In place of the wrapper's `adapter_state_dict`."""
    return {state.name: state.value} if adapter == of else {}
