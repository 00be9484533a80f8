"""Writes lazy tensors into safetensors files, one tensor in memory at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.serialization._base import parse_size_to_int

from moe_hf.base.errors import ConfigError
from moe_hf.models.dense.lazy_tensors import LazyTensor, name_of_dtype

# The format asks for a header whose end, and so the first tensor, is aligned to this many bytes.
_ALIGNED = 8


def require_shard_size(max_shard_size: str) -> None:
    """Do nothing where it is a size of files, such as "2GB".

    Raises:
        ConfigError: it is none.
    """
    try:
        parse_size_to_int(max_shard_size)
    except ValueError as error:
        raise ConfigError(f"max_shard_size={max_shard_size!r} is not allowed; it must be a size such as 2GB") from error


def write_weights(
    state: Mapping[str, LazyTensor],
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str = "5GB",
    on_shard: Callable[[int, int], None] | None = None,
) -> int:
    """Write the weights of a model, with an index where they need several files; returns the number of files.

    Args:
        state: the tensors by name.
        folder: where to.
        dtype: type of the weights; states of routers keep their own.
        max_shard_size: largest size of a file, such as "2GB"; one tensor is never split.
        on_shard: called with (files done, files in all).
    """
    # The plan asks for sizes alone: no tensor is read for it.
    split = split_state_dict_into_shards_factory(
        dict(state),  # type: ignore[arg-type]
        get_storage_size=lambda value: written_size(value, dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for done, (name, tensors) in enumerate(split.filename_to_tensors.items(), start=1):
        write_file({tensor: state[tensor] for tensor in tensors}, folder / name, dtype)
        if on_shard is not None:
            on_shard(done, len(split.filename_to_tensors))
    if split.is_sharded:
        total = sum(written_size(value, dtype) for value in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return len(split.filename_to_tensors)


def write_file(state: Mapping[str, LazyTensor], path: Path, dtype: torch.dtype) -> None:
    """Write one file. safetensors' own writer would need all tensors of the file in memory at once.

    The format (huggingface.co/docs/safetensors): the length of a header of JSON, the header, then the tensors' bytes.
    """
    # The widest types first, so that every tensor stands at a multiple of the size of its type.
    ordered = sorted(state.items(), key=lambda item: (-item[1].written_dtype(dtype).itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in ordered:
        start, end = end, end + written_size(value, dtype)
        kind = name_of_dtype(value.written_dtype(dtype))
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, value in ordered:
            _write_tensor(file, value.read().to(value.written_dtype(dtype)))


def written_size(value: LazyTensor, dtype: torch.dtype) -> int:
    """Bytes of a tensor in a file whose weights are of `dtype`."""
    return torch.Size(value.shape).numel() * value.written_dtype(dtype).itemsize


def _write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    # As bytes: NumPy knows no bfloat16.
    file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
