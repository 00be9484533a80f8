"""Mixture-of-Experts decoders for the Hugging Face world: build, upcycle, train, chat and share them."""

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.presets import create_moe_config
from moe_hf.models.auto import register_families
from moe_hf.models.gpt2_moe import GPT2WithMoE, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.models.info import get_moe_model_info
from moe_hf.version import __version__

__all__ = [
    "GPT2WithMoE",
    "GPT2WithMoEConfig",
    "GPT2WithMoEForSequenceClassification",
    "GPT2WithMoEModel",
    "create_moe_config",
    "get_moe_model_info",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "__version__",
]

register_families()
