"""What GGUF says of rotary positions: the base, how they are stretched, and a factor for each frequency."""

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moe_hf.base.errors import CheckpointError
from moe_hf.export.architectures import Architecture

# What yarn may say besides these has no place in GGUF, or another default there.
_YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}


class Rotation(NamedTuple):
    """How the positions of a model rotate.

    Attributes:
        base: the theta of the frequencies theta^(-2i/D).
        scaling: llama.cpp's name of the stretching, "none" without one.
        factor: how far positions are stretched.
        original: the context before it, in tokens.
        frequency_factors: (D/2,) what each frequency is divided by; None where that is 1.
    """

    base: float
    scaling: str = "none"
    factor: float = 1.0
    original: int = 0
    frequency_factors: torch.Tensor | None = None


def rotation_of(config: PreTrainedConfig, architecture: Architecture) -> Rotation:
    """How the positions of a configuration rotate, in llama.cpp's words.

    Raises:
        CheckpointError: llama.cpp does not rotate them so.
    """
    given: dict[str, Any] = dict(config.rope_parameters or {})
    kind, base = given.get("rope_type", "default"), float(given["rope_theta"])
    plain = Rotation(base)
    partial = given.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise CheckpointError(f"partial_rotary_factor={partial!r} can't be exported to GGUF; heads must rotate whole")
    if kind == "default":
        return plain
    if kind == "linear":
        return plain._replace(scaling="linear", factor=float(given["factor"]))
    if kind == "yarn" and not {name for name, value in given.items() if value is not None} - _YARN:
        original = given.get("original_max_position_embeddings") or config.max_position_embeddings
        return plain._replace(scaling="yarn", factor=float(given["factor"]), original=int(original))
    if kind == "llama3" and architecture.rope_factors:
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        # Frequency i is theta^(-2i/D), and D/2 of them are there.
        exponents = torch.arange(len(stretched), dtype=torch.float32) / len(stretched)
        return plain._replace(frequency_factors=base**-exponents / stretched)
    raise CheckpointError(
        f"rope_parameters={given!r} can't be exported to GGUF for llama.cpp's {architecture.name}; it computes "
        f"default, linear{', llama3' if architecture.rope_factors else ''} and, with none but its factor and original "
        "context, yarn"
    )
