"""Keeps the hooks of transformers' recorder out of the pickles of modules."""

import copy
from typing import Any

from torch import nn
from transformers.utils import output_capturing

_MARK = "_output_capturing_hooks_installed"


class PicklesWithoutRecorder(nn.Module):
    """A module whose results transformers' recorder collects, or one that asks for it, and which can be pickled.

    It records nothing by itself; what is recorded, the model says. The recorder's hooks are local functions, which no
    pickle can hold, so that `torch.save(model)` leaves them out and the loaded model gets its own with the first call
    that records.
    """

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())  # type: ignore[call-overload]
        state.pop(_MARK, None)
        hooks = state["_forward_hooks"]
        kept = {key: hook for key, hook in hooks.items() if hook.__module__ != output_capturing.__name__}
        return {**state, "_forward_hooks": type(hooks)(kept)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # With the hooks: a copied layer may take its place in a model that has installed them already.
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(super().__getstate__(), memo))  # type: ignore[arg-type]
        return copied
