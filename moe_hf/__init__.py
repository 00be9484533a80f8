"""Mixture-of-Experts decoders for the Hugging Face world: build, upcycle, train, chat and share them.

Importing the package costs nothing yet. What needs torch is loaded with transformers, or for the first name that is
asked for, so that a command can show its help at once and can choose how torch's threads wait.
"""

import importlib
from typing import TYPE_CHECKING, Any

from moe_hf.base.after_import import after_import
from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.version import __version__

if TYPE_CHECKING:
    from moe_hf.public import *

_FAMILIES = ("GPT2", "Hyena", "Llama", "Mamba", "MegaByte", "RetNet", "RWKV")

__all__ = [
    *(f"{name}WithMoE{part}" for name in _FAMILIES for part in ("", "Config", "ForSequenceClassification", "Model")),
    "HyenaFilter",
    "MegaBytePatching",
    "create_moe_config",
    "get_moe_model_info",
    "MoEQuantizationConfig",
    "MoE",
    "HashRouter",
    "SwitchRouter",
    "expert_utilization",
    "load_balance_std",
    "topk_sparse_attention",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Loads the module below too, while none of its parts is half imported.
    importlib.import_module("transformers")
    return getattr(importlib.import_module("moe_hf.public"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


after_import("transformers", lambda: importlib.import_module("moe_hf.public"))
