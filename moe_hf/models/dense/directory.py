"""Writes a Mixture-of-Experts directory from a dense model's: one shard at a time, and atomically."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from safetensors.torch import save_file

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import atomic_folder
from moe_hf.base.model_source import folder_or_hub_id
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.auto import Family, dense_model_types, family_of_dense
from moe_hf.models.dense.checkpoint_files import indexed_files, json_object, open_slices
from moe_hf.models.dense.fit import fitting_state
from moe_hf.models.dense.format import DenseFormat
from moe_hf.models.dense.kept_logits import why_logits_change
from moe_hf.models.dense.lazy_tensors import LazyTensor, dtype_named
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.parameter_kinds import IN_FLOAT32

# What belongs to the model beside its weights and its configuration.
CARRIED_FILES = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json added_tokens.json "
    "chat_template.jinja generation_config.json"
).split()
_SAME_LOGITS = "It gives the dense model's logits; train it before you expect more."


class UpcycleReport(NamedTuple):
    """What was written, and where."""

    folder: Path
    config: MoEDecoderConfig
    weight_bytes: int
    num_shards: int
    carried: list[str]


def upcycle_directory(
    source: str,
    destination: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    on_shard: Callable[[int, int], None] | None = None,
    **overrides: Any,
) -> UpcycleReport:
    """Turn the dense model of `source` into a Mixture of Experts in the new folder `destination`.

    No more than one shard is in memory at a time. Tokenizer and generation config are carried over.

    Args:
        source: a folder or a Hub id.
        destination: must not exist, or be empty, unless `overwrite`.
        dtype: type of the written weights; None keeps the source's. The states of routers keep their own.
        max_shard_size: largest size of a weights file, such as "2GB"; one tensor is never split.
        overwrite: replace `destination`, which must be a model's folder, once the new one is complete.
        on_shard: called with (shards done, shards in all).
        **overrides: fields of the family's configuration, such as `num_experts`.

    Raises:
        CheckpointError: the source is no complete dense model in safetensors that a family can start from, the
            destination is taken, or the disk is too small. Nothing is written then.
        ConfigError: an override is not allowed.
    """
    destination = Path(destination)
    folder = _local_folder(source)
    if folder.resolve().is_relative_to(destination.resolve()):
        raise CheckpointError(f"{destination} holds the source {source}, which would be lost; choose another folder")
    _require_free(destination, overwrite)
    family = _family(source, folder)
    config = family.config.from_pretrained(folder, **overrides)
    config.architectures = [family.causal_lm.__name__]
    dense, state = _upcycled_state(source, folder, family, config, dtype)
    config.dtype = dtype or dtype_named(state["model.embed_tokens.weight"].get_dtype())
    total = sum(_size(value, config.dtype) for value in state.values())

    with atomic_folder(destination) as aside:
        # Here what a killed run left behind is gone.
        _require_space(destination, total)
        num_shards = _write_weights(state, aside, config.dtype, max_shard_size, on_shard)
        config.save_pretrained(aside)
        carried = [name for name in CARRIED_FILES if (folder / name).is_file()]
        for name in carried:
            shutil.copyfile(folder / name, aside / name)
        (aside / "README.md").write_text(_model_card(source, destination.name, config, dense), encoding="utf-8")
    return UpcycleReport(destination, config, total, num_shards, carried)


def _upcycled_state(
    source: str, folder: Path, family: Family, config: MoEDecoderConfig, dtype: torch.dtype | None
) -> tuple[DenseFormat, dict[str, LazyTensor]]:
    """What the source is, and the unread tensors of the model to write."""
    files = _weight_files(folder)
    slices = open_slices(files)
    formats = family.model.dense_formats
    dense = next((known for known in formats if known.recognises(slices)), None)
    if dense is None:
        raise CheckpointError(
            f"{source} holds {len(slices)} tensors such as {min(slices, default='none')!r}, which are not those of a "
            f"{' or a '.join(known.name for known in formats)}; its config.json says that it is one"
        )
    state = fitting_state(dense, slices, files[0], config, family.model, dtype=dtype)
    # What the loader keeps in float32 in a model of half precision is written so, too.
    for name, value in state.items():
        value.in_float32 = any(part in name for part in IN_FLOAT32)
    return dense, state


def _write_weights(
    state: dict[str, LazyTensor],
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: str,
    on_shard: Callable[[int, int], None] | None,
) -> int:
    """Write the weights, one file in memory at a time; returns the number of files."""
    # The plan asks for sizes alone: no tensor is read for it.
    split = split_state_dict_into_shards_factory(
        state,  # type: ignore[arg-type]
        get_storage_size=lambda value: _size(value, dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for done, (name, tensors) in enumerate(split.filename_to_tensors.items(), start=1):
        shard = {tensor: state[tensor].read().to(state[tensor].written_dtype(dtype)) for tensor in tensors}
        save_file(shard, folder / name, metadata={"format": "pt"})
        if on_shard is not None:
            on_shard(done, len(split.filename_to_tensors))
    if split.is_sharded:
        total = sum(_size(value, dtype) for value in state.values())
        index = {"metadata": {"total_size": total}, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return len(split.filename_to_tensors)


def _require_free(destination: Path, overwrite: bool) -> None:
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{destination} already exists and is not empty; choose another folder or overwrite it")
    # A mistyped folder would be gone for good.
    if not (destination / "config.json").is_file():
        raise CheckpointError(
            f"{destination} is not the folder of a model (it has no config.json) and is not overwritten; choose "
            "another folder, or delete it yourself"
        )


def _family(source: str, folder: Path) -> Family:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source} has no config.json; name a folder that has one")
    model_type = json_object(path).get("model_type", "gpt2")
    family = family_of_dense(model_type)
    if family is None:
        allowed = ", ".join(dense_model_types())
        raise CheckpointError(f"{source} holds a model of type {model_type!r}; only dense {allowed} can be upcycled")
    return family


def _local_folder(source: str) -> Path:
    folder = Path(folder_or_hub_id(source))
    if folder.is_dir():
        return folder
    # Pickled weights are not even downloaded.
    return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.jinja", "*.safetensors"]))


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return indexed_files(index)
    single = folder / "model.safetensors"
    pickled = sorted(folder.glob("*.bin"))
    if not single.is_file() and not pickled:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{folder} has no model.safetensors; found {found}")
    return [str(single if single.is_file() else pickled[0])]


def _size(value: LazyTensor, dtype: torch.dtype) -> int:
    return torch.Size(value.shape).numel() * value.written_dtype(dtype).itemsize


def _require_space(destination: Path, needed: int) -> None:
    existing = next(parent for parent in destination.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"{destination} needs {needed / 1e9:.1f} GB but its disk has {free / 1e9:.1f} GB free; choose fewer "
            "experts, half precision, or another disk"
        )


def _model_card(source: str, name: str, config: MoEDecoderConfig, dense: DenseFormat) -> str:
    info = get_moe_model_info(config)
    base_model = "" if Path(source).exists() else f"base_model: {source}\n"
    # Fresh FFNs add nothing, whatever their experts weigh.
    reasons = why_logits_change(config) if dense.has_ffn else []
    if dense.has_ffn and config.sparse_layers and config.expert_init != "copy":
        reasons.append(f'expert_init="{config.expert_init}" changes the experts; "copy" keeps the logits')
    logits = f"It does not give the dense model's logits: {'; '.join(reasons)}." if reasons else _SAME_LOGITS
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- mixture-of-experts
- moe_hf
{base_model}---

# {name}

A Mixture of Experts upcycled from the dense model `{Path(source).name if Path(source).exists() else source}`. It has
not been trained since. {logits}

| | |
| --- | --- |
| parameters, total | {info["total_params_m"]:.1f}M |
| parameters, active per token | {info["active_params_m"]:.1f}M |
| parameters of the dense source | {info["dense_twin_params_m"]:.1f}M |
| sparse layers | {info["moe_layers"]} of {config.num_hidden_layers} |
| experts, per token | {config.num_experts}, {config.num_experts_per_tok} |
| expert_init, router_init, seed | {config.expert_init}, {config.router_init}, {config.expert_init_seed} |
| type | {str(config.dtype).removeprefix("torch.")} |

```python
import moe_hf  # registers the model class
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""
