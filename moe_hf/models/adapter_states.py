"""Has the states of a model's routers saved with peft's adapters: what training moves beside the weights."""

from functools import partial
from typing import Any

import torch
from torch import nn

from moe_hf.base.optional import require
from moe_hf.layers.ffn.routers import LoadLearner


def save_states_with_adapters(model: nn.Module) -> None:
    """Let peft write correction biases and thresholds into the files of every adapter that `model` carries.

    peft saves what belongs to an adapter and what its wrappers of whole modules name. Each router gets such a wrapper
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
    for router in [module for module in model.modules() if isinstance(module, LoadLearner) and module not in whole]:
        for name in adapters:
            saver = wrapper(nn.Identity(), name)
            saver.set_adapter(name)
            saver.adapter_state_dict = partial(_state_of, router, name)
            router.add_module(name, saver)


def _state_of(router: LoadLearner, owner: str, adapter: str, state_dict: dict[str, Any]) -> dict[str, torch.Tensor]:
    """In place of the wrapper's `adapter_state_dict`."""
    return {router.state_name: router.state_E} if adapter == owner else {}
