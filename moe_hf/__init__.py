"""Mixture-of-Experts decoders for the Hugging Face world: build, upcycle, train, chat and share them."""

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.presets import create_moe_config
from moe_hf.layers.experts_backends import register_experts_backends
from moe_hf.layers.ffn.routers import HashRouter, SwitchRouter
from moe_hf.layers.ffn.standalone import MoE
from moe_hf.models.auto import register_families
from moe_hf.models.gpt2_moe import GPT2WithMoE, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.models.info import get_moe_model_info
from moe_hf.ops.load_statistics import expert_utilization, load_balance_std
from moe_hf.version import __version__

__all__ = [
    "GPT2WithMoE",
    "GPT2WithMoEConfig",
    "GPT2WithMoEForSequenceClassification",
    "GPT2WithMoEModel",
    "create_moe_config",
    "get_moe_model_info",
    "MoE",
    "HashRouter",
    "SwitchRouter",
    "expert_utilization",
    "load_balance_std",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "__version__",
]

register_families()
register_experts_backends()
