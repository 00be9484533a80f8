"""Opens the files of a checkpoint: safetensors of its own folder alone, and JSON that is what it should be."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import json_object

_CONVERT = "if you trust it, load it with AutoModelForCausalLM and save_pretrained it, which writes safetensors"


def open_slices(files: list[str]) -> dict[str, Any]:
    """Unread slices of all tensors in the safetensors files, by name.

    Raises:
        CheckpointError: a file is no safetensors file, or is cut off.
    """
    slices: dict[str, Any] = {}
    for file in files:
        require_safetensors([file])
        try:
            opened = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} can't be read as safetensors ({error}); it is incomplete or damaged: download it again"
            ) from error
        slices.update({name: opened.get_slice(name) for name in opened.keys()})
    return slices


def require_safetensors(files: Iterable[str]) -> None:
    """Check that all files are safetensors, by their names.

    Raises:
        CheckpointError: one is not.
    """
    for file in files:
        if not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{Path(file).name} is not a safetensors file; pickled checkpoints can run code and are not read: "
                f"{_CONVERT}"
            )


def require_inside(folder: str | os.PathLike, files: Iterable[str], source: Any) -> None:
    """Check that files, which something on the Hub may have named, stand in a folder.

    Args:
        folder: where they must stand; relative names start there.
        files: their names.
        source: what the error calls whatever named them.

    Raises:
        CheckpointError: one stands somewhere else.
    """
    # Not resolved: the files of the Hub's cache are links.
    root = os.path.abspath(folder)
    # A name that climbs may come back by another way than it seems, through a link.
    outside = [
        file
        for file in files
        if ".." in Path(file).parts or not Path(os.path.abspath(os.path.join(root, file))).is_relative_to(root)
    ]
    if outside:
        raise CheckpointError(f"{source} leads out of its folder, to {listed(outside)}; don't use this model")


def indexed_files(index: Path) -> list[str]:
    """The safetensors files that an index of shards names, which all stand in its folder.

    Raises:
        CheckpointError: it is no such index, or names a file that is absent, of another kind or somewhere else.
    """
    names = indexed_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index} lists {listed(missing)}, which {index.parent} lacks; download it again")
    return [str(index.parent / name) for name in names]


def indexed_names(index: Path) -> list[str]:
    """The names of the safetensors files that an index of shards names, none of which leads out of its folder.

    Raises:
        CheckpointError: it is no such index, or names a file of another kind or somewhere else.
    """
    weight_map = json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map, a table from tensors to files; download it again")
    names = sorted(set(weight_map.values()))
    require_inside(index.parent, names, index)
    require_safetensors(names)
    return names


def is_head_tied(weights_file: str, default: bool = True) -> bool:
    """Whether the `config.json` beside a dense model's weights says that its head is its embedding's matrix.

    Args:
        weights_file: one of the files with the weights.
        default: what the architecture takes where the file does not say.
    """
    path = Path(weights_file).parent / "config.json"
    return path.is_file() and json_object(path).get("tie_word_embeddings", default)


def listed(names: Iterable[str]) -> str:
    """The first few of many names; those of a set in the order of the alphabet.

    >>> listed("abcdefg")
    'a, b, c, d, e, ...'
    """
    names = sorted(names) if isinstance(names, set) else list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def refuse_adapter(folder: Path, source: Any) -> None:
    """Refuse a dense model with an adapter beside it, which would be loaded on top of what is made of its weights.

    Raises:
        CheckpointError: there is one.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{source} holds an adapter (adapter_config.json) beside a dense model; merge it first, with peft's "
            "merge_and_unload and save_pretrained, or name a folder without it"
        )
