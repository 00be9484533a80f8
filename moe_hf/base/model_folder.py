"""Reads what a model's folder says of itself, without loading it: whether it is whole, its type, its parameters."""

import math
from pathlib import Path

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import json_object

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def weights_file(folder: Path) -> Path | None:
    """The safetensors file, or shard index, of a model folder; None when config, weights or tokenizer is missing."""
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def model_type_in(folder: Path) -> str | None:
    """What `config.json` calls the type of the model; None where it can't be read."""
    try:
        name = json_object(folder / "config.json").get("model_type")
    except (OSError, CheckpointError):
        return None
    return name if isinstance(name, str) else None


def stored_parameters(folder: Path) -> int | None:
    """The numbers in the safetensors files of a folder, by their headers; None where there are none to be read.

    A matrix that two parts of a model share is stored, and counted, once. Of quantised experts the codes are counted,
    two in a byte at 4 bits, with the rows that fill up a block of 64.
    """
    # Only now: a command that lists nothing need not wait for it.
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        for path in _weight_files(folder):
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    stored = file.get_slice(name)
                    halves = name.endswith("_codes") and stored.get_dtype() == "U8"
                    count += 0 if name.endswith("_scales") else (1 + halves) * math.prod(stored.get_shape())
    except (OSError, ValueError, CheckpointError, SafetensorError):
        return None
    return count or None


def _weight_files(folder: Path) -> list[Path]:
    whole, index = (folder / name for name in WEIGHTS)
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    shards = json_object(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} has no weight_map")
    # An index names files beside it: one that leads elsewhere is not followed.
    return [folder / Path(name).name for name in sorted({str(name) for name in shards.values()})]
