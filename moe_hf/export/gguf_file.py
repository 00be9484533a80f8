"""Writes a model of transformers' own as one GGUF file for llama.cpp: a tensor in memory at a time, and atomically."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig

from moe_hf.base.errors import CheckpointError, ConfigError, first_line
from moe_hf.base.files import atomic_file
from moe_hf.base.model_source import find_model
from moe_hf.base.optional import require
from moe_hf.base.tokenizer_source import load_tokenizer
from moe_hf.export.architectures import architecture_of, require_computable
from moe_hf.export.metadata import add_metadata
from moe_hf.export.rotation import rotation_of
from moe_hf.export.tensors import plan_tensors
from moe_hf.export.tokenizer import TokenizerReport, add_tokenizer
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.upcycling.opened import OpenedModel, open_model

# Blocks of this many numbers of a row share a scale.
_BLOCK = 32
# What the types hold; the scales of Q8_0 are of float16, and its numbers up to 127 of them.
_LARGEST = {"F16": 65504.0, "Q8_0": 65504.0 * 127}
# The type of a file by the type of most of its tensors, in llama.cpp's numbering.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

# Any of them means that there is a tokenizer.
_TOKENIZER_FILES = ("tokenizer*", "vocab.*")

TYPES = ("f32", "f16", "bf16", "q8_0")
"""How matrices may be stored."""


class ExportReport(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        architecture: llama.cpp's name of it.
        parameters: how many numbers the tensors hold.
        size: bytes of the file.
        types: how many tensors are stored in which type.
        kept: matrices that are not in the type asked for, since their rows are no multiple of 32.
        tokenizer: what was written of it; None where the model has none.
        notices: what a user should know, a sentence each.
    """

    path: Path
    architecture: str
    parameters: int
    size: int
    types: dict[str, int]
    kept: list[str]
    tokenizer: TokenizerReport | None
    notices: list[str]


def export_gguf(
    source: str,
    destination: str | Path,
    quantize: str | None = None,
    overwrite: bool = False,
    on_tensor: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the model of `source` as a GGUF file.

    Args:
        source: a folder or a Hub id of a model of `ARCHITECTURES`.
        destination: the file, whose folder must exist.
        quantize: type of the matrices, one of `TYPES`; None takes the one in which the model is stored. Vectors and
            routers are always in float32, and with q8_0 matrices whose rows are no multiple of 32 in f16.
        overwrite: replace the file where there is one, once the new one is complete.
        on_tensor: called with (tensors done, tensors in all).

    Raises:
        CheckpointError: the source is no complete model of those, the destination is taken, has no folder or another
            ending than .gguf, the disk is too small, or a weight is too large for the type. No file is left behind.
        ConfigError: the type is unknown.
        BackendUnavailableError: the package gguf is not installed.
    """
    gguf = require("gguf", "writing GGUF files")
    destination = Path(destination).expanduser()
    if quantize not in (None, *TYPES):
        raise ConfigError(f"quantize={quantize!r} is not allowed; it must be one of {', '.join(TYPES)}")
    _require_free(destination, overwrite)
    plan = _plan(gguf, source, quantize)
    sizes = {name: _add_info(gguf, plan, name) for name in plan.tensors}
    _require_space(destination, sum(sizes.values()))
    with atomic_file(destination) as aside:
        _write(gguf, plan, aside, on_tensor)
    return ExportReport(
        destination,
        plan.writer.arch,
        sum(torch.Size(value.shape).numel() for value in plan.tensors.values()),
        destination.stat().st_size,
        dict(Counter(plan.types.values())),
        [name for name, kind in plan.types.items() if quantize == "q8_0" and kind == "F16"],
        plan.tokenizer,
        plan.notices,
    )


class _Plan(NamedTuple):
    """What goes into a file: gguf's writer with all keys, and the tensors with the types that they are stored in."""

    writer: Any
    tensors: dict[str, LazyTensor]
    types: dict[str, str]
    tokenizer: TokenizerReport | None
    notices: list[str]


def _plan(gguf: Any, source: str, quantize: str | None) -> _Plan:
    # Asked before it is opened: of a GGUF file that would load all of it.
    if (file := find_model(source).gguf_file) is not None:
        raise CheckpointError(f"{source} is a GGUF file already ({file}); name a transformers model")
    opened = open_model(source)
    architecture = architecture_of(source, opened.model_type)
    try:
        config = AutoConfig.from_pretrained(opened.folder)
    except Exception as error:
        # Configurations check their fields by errors of several kinds.
        raise CheckpointError(f"the config.json of {source} is not allowed: {first_line(error)}") from error
    require_computable(config, architecture)
    rotation = rotation_of(config, architecture)
    tensors = plan_tensors(opened.slices, config, architecture, rotation)
    stored = tensors["token_embd.weight"].get_dtype()
    wanted = (quantize or (stored if stored in _FILE_TYPES else "F32")).upper()

    writer = gguf.GGUFWriter(None, architecture.name)
    name = Path(source).expanduser().resolve().name
    notices = add_metadata(writer, name, config, architecture, rotation)
    tokenizer = _add_tokenizer(writer, opened, config)
    notices += tokenizer.notices if tokenizer else [f"{source} has no tokenizer, and so the file has none"]
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_FILE_TYPES[wanted])
    types = {name: _stored_type(name, value, wanted) for name, value in tensors.items()}
    return _Plan(writer, tensors, types, tokenizer, notices)


def _require_free(destination: Path, overwrite: bool) -> None:
    if destination.suffix != ".gguf" and not destination.is_dir():
        raise CheckpointError(f"{destination} is no name of a GGUF file; it must end in .gguf")
    if not destination.absolute().parent.is_dir():
        raise CheckpointError(f"there is no folder {destination.parent} for {destination.name}; create it first")
    if destination.is_dir():
        raise CheckpointError(f"{destination} is a folder; name a file, such as {destination / 'model.gguf'}")
    if destination.exists() and not overwrite:
        raise CheckpointError(f"{destination} already exists; choose another file or overwrite it")


def _require_space(destination: Path, needed: int) -> None:
    free = shutil.disk_usage(destination.absolute().parent).free
    if free < needed:
        raise CheckpointError(
            f"{destination} needs {needed / 1e9:.1f} GB but its disk has {free / 1e9:.1f} GB free; choose a smaller "
            "type, such as q8_0, or another disk"
        )


def _stored_type(name: str, value: LazyTensor, wanted: str) -> str:
    # A router's choice turns on small differences, and llama.cpp computes with vectors in float32 alone.
    if len(value.shape) == 1 or "ffn_gate_inp" in name:
        return "F32"
    return "F16" if wanted == "Q8_0" and value.shape[-1] % _BLOCK else wanted


def _add_tokenizer(writer: Any, opened: OpenedModel, config: PreTrainedConfig) -> TokenizerReport | None:
    if not any(found for pattern in _TOKENIZER_FILES for found in opened.folder.glob(pattern)):
        writer.add_tokenizer_model("none")
        return None
    try:
        tokenizer = load_tokenizer(opened.source)
    except Exception as error:
        # Tokenizers raise whatever their files make them raise.
        raise CheckpointError(f"the tokenizer of {opened.name} can't be loaded: {first_line(error)}") from error
    return add_tokenizer(writer, opened.name, tokenizer, config)


def _add_info(gguf: Any, plan: _Plan, name: str) -> int:
    """Announce a tensor; returns its bytes in the file."""
    raw, shape = gguf.GGMLQuantizationType[plan.types[name]], plan.tensors[name].shape
    block, block_bytes = gguf.GGML_QUANT_SIZES[raw]
    size = torch.Size(shape).numel() // block * block_bytes
    plan.writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=raw)
    return size


def _write(gguf: Any, plan: _Plan, path: Path, on_tensor: Callable[[int, int], None] | None) -> None:
    writer = plan.writer
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        _pad(file, writer.data_alignment)
        for done, (name, value) in enumerate(plan.tensors.items(), start=1):
            # Not by the writer, whose errors of a full disk have no number.
            file.write(encoded(gguf, name, value.read(), plan.types[name]).data)
            _pad(file, writer.data_alignment)
            if on_tensor is not None:
                on_tensor(done, len(plan.tensors))
    finally:
        writer.close()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(b"\0" * (-file.tell() % alignment))


def encoded(gguf: Any, name: str, value: torch.Tensor, kind: str) -> np.ndarray:
    """A tensor's bytes as GGUF stores them.

    Raises:
        CheckpointError: it holds a number that the type can't.
    """
    numbers = value.to(torch.float32).numpy()
    largest = np.abs(numbers).max(initial=0.0)
    if not np.isfinite(largest):
        raise CheckpointError(f"{name} holds {largest}; its model is broken: name another")
    if largest > _LARGEST.get(kind, np.inf):
        raise CheckpointError(f"{name} holds {largest:.4g}, which is too large for {kind.lower()}; choose bf16 or f32")
    return np.ascontiguousarray(gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind]))
