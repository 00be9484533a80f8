"""Opens a model, in safetensors or GGUF, without reading more of its weights than must be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moe_hf.base.errors import CheckpointError, reading
from moe_hf.base.files import json_object
from moe_hf.base.model_source import ModelSource, find_model, without_progress_bar
from moe_hf.config.reading import model_type_in
from moe_hf.models.dense.checkpoint_files import indexed_files, open_slices, refuse_adapter
from moe_hf.models.dense.lazy_tensors import Loaded

# Pickled weights are not even downloaded.
_WANTED = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors", "README.md"]


class OpenedModel(NamedTuple):
    """A model, mostly a dense one, whose tensors are read when they are needed.

    Attributes:
        name: what the user called it.
        source: its folder, and its GGUF file where it is one.
        config: the content of its `config.json`, or what the GGUF file says in its place.
        slices: its tensors, by name, unread.
        weights_file: one of the files with them.
    """

    name: str
    source: ModelSource
    config: dict[str, Any]
    slices: Mapping[str, Any]
    weights_file: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return Path(self.source.folder)

    @property
    def model_type(self) -> str:
        """The `model_type` of its configuration."""
        return model_type_in(self.config, self.name)


def open_model(name: str, gguf_file: str | None = None) -> OpenedModel:
    """Open the dense model that a user named, by the words of `find_model`; Hub models are downloaded first.

    Raises:
        CheckpointError: there is none, its files are incomplete, pickled or damaged, it is quantised in another way
            than GGUF's, or an adapter lies beside its weights.
    """
    source = find_model(name, gguf_file)
    if not Path(source.folder).is_dir():
        wanted = _WANTED if source.gguf_file is None else [source.gguf_file]
        source = source._replace(folder=snapshot_download(source.folder, allow_patterns=wanted))
    folder = Path(source.folder)
    if source.gguf_file is not None:
        return _open_gguf(name, source)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} has no config.json; name a folder that has one")
    refuse_adapter(folder, name)
    config = json_object(folder / "config.json")
    if config.get("quantization_config"):
        said = config["quantization_config"]
        method = said.get("quant_method", "some way") if isinstance(said, dict) else said
        raise CheckpointError(f"{name} is quantised ({method}); name the model in float32, bfloat16 or float16")
    files = weight_files(folder)
    return OpenedModel(name, source, config, open_slices(files), files[0])


def other_config(source: ModelSource) -> PreTrainedConfig:
    """The configuration of a model whose class is transformers' own.

    Raises:
        CheckpointError: this transformers has no such class, or the file is not one of its.
    """
    # Classes check their fields with errors of any kind.
    with reading(f"the configuration of {source.folder}"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.folder, **source.options)
    return config


def weight_files(folder: Path) -> list[str]:
    """The files with a folder's weights: safetensors, or a pickled one, which whoever opens it refuses.

    Raises:
        CheckpointError: it has none, or an index that leads elsewhere.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    # As transformers has it: an index that an earlier model left beside a whole file says nothing.
    if index.is_file() and not single.is_file():
        return indexed_files(index)
    pickled = sorted(folder.glob("*.bin"))
    if not single.is_file() and not pickled:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{folder} has no model.safetensors; found {found}")
    return [str(single if single.is_file() else pickled[0])]


def _open_gguf(name: str, source: ModelSource) -> OpenedModel:
    path = Path(source.folder, source.gguf_file or "")
    try:
        with without_progress_bar():
            config, model = _load_gguf(source)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} can't be read as GGUF: {error}") from error
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    slices = {key: Loaded(value) for key, value in model.state_dict().items() if key not in tied}
    return OpenedModel(name, source, config.to_dict(), slices, str(path))


def _load_gguf(source: ModelSource) -> tuple[PreTrainedConfig, PreTrainedModel]:
    config: PreTrainedConfig = AutoConfig.from_pretrained(source.folder, **source.options)
    # transformers knows the names and the layout of each architecture's tensors in GGUF, for whole models alone.
    return config, AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, **source.options)
