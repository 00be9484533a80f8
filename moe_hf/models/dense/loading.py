"""How `from_pretrained` of a family loads: dense models as well, no file that can run code, nothing left to chance."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.base.files import json_object
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.checkpoint_files import (
    indexed_files,
    indexed_names,
    listed,
    open_slices,
    refuse_adapter,
    require_inside,
    require_safetensors,
)
from moe_hf.models.dense.fit import fitting_state
from moe_hf.models.dense.format import DenseFormat

_SAFE_INDEXES = "model.safetensors.index*.json"
_WAY_OUT = (
    "drop the override, correct its config.json or download it again; or load it with ignore_mismatched_sizes=True, "
    "which starts what does not fit afresh"
)


class LoadsDense(PreTrainedModel):
    """Base of all models, whether their weights come from a dense model or not.

    Attributes:
        dense_formats: the dense architectures that a family can start from; its model without a head says so.
        model_class: that model's class, for a model with a head.
    """

    dense_formats: ClassVar[tuple[DenseFormat, ...]] = ()
    model_class: ClassVar[type[PreTrainedModel] | None] = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """The model of a directory or Hub id: one of this family, or a dense one, whose FFNs become experts.

        Fields of the configuration may be given as keywords, `num_experts=8, num_experts_per_tok=2, expert_init=...`
        among them. Everything else is as in transformers: `dtype`, `device_map`, `offload_folder`, `revision`, ...
        No parameter is drawn at random but the head that a task adds, such as the classifier on a causal language
        model, and what a dense model has none of, from `expert_init_seed`: routers, shared experts, and all FFNs of
        a Mamba. Such FFNs and shared experts add nothing at first. `ignore_mismatched_sizes=True` is the word for
        the others: what the checkpoint lacks, or has in another size, starts afresh then, and what the model has no
        place for is dropped.

        Raises:
            CheckpointError: another kind of model; missing, misfitting or left over tensors; a damaged file; only
                pickled weights; or an index of shards that names others than safetensors files of its folder.
            ConfigError: `config` is that of another family.
        """
        config, own = kwargs.get("config"), cast(type, cls.config_class)
        if isinstance(config, PreTrainedConfig) and not isinstance(config, own):
            raise ConfigError(
                f"config is a {type(config).__name__}; it must be a {own.__name__}, as {own.__name__}.from_pretrained "
                "gives it for a dense model as well; or leave it out"
            )
        # An explicit False is the user's word that pickled weights of this family are trusted.
        if kwargs.get("state_dict") is None and kwargs.get("gguf_file") is None:
            # Left at None, transformers would fall back to a pickled file.
            kwargs["use_safetensors"] = kwargs.get("use_safetensors") is not False
        if kwargs.get("use_safetensors"):
            _require_safe_index(pretrained_model_name_or_path, kwargs.get("subfolder"), kwargs.get("variant"))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} holds a safetensors file that can't be read ({error}); it is "
                "incomplete or damaged: download it again"
            ) from error
        except (CheckpointError, ConfigError):
            raise
        except Exception as error:
            # transformers reads the index of a repository on the Hub unchecked, and fails by errors of any kind.
            index = _cached_index(pretrained_model_name_or_path, kwargs)
            try:
                if index is not None:
                    indexed_names(index)
                    _require_metadata(index)
            except CheckpointError as told:
                raise told from error
            pickled = _pickled_weights(pretrained_model_name_or_path) if isinstance(error, OSError) else None
            require_safetensors([] if pickled is None else [pickled])
            raise

    @classmethod
    def _load_pretrained_model(
        cls,
        model: PreTrainedModel,
        state_dict: dict | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        **kwargs: Any,
    ) -> Any:
        if load_config.use_safetensors and not state_dict:
            _require_safe_files(checkpoint_files or [], load_config.pretrained_model_name_or_path)
        wanted = model.state_dict().keys()
        if state_dict is None and checkpoint_files and checkpoint_files[0].endswith(".safetensors"):
            slices = open_slices(checkpoint_files)
            dense_format = cls._dense_format_of(slices)
            if dense_format is not None:
                refuse_adapter(Path(checkpoint_files[0]).parent, load_config.pretrained_model_name_or_path)
                # Without a head the model's own names lack the prefix.
                bare = not any(name.startswith("model.") for name in wanted)
                config = cast(MoEDecoderConfig, model.config)
                body = type(cast(PreTrainedModel, model.base_model))
                lazy = fitting_state(
                    dense_format, slices, checkpoint_files[0], config, body, "lm_head.weight" in wanted, model.dtype
                )
                named = {name.removeprefix("model.") if bare else name: value for name, value in lazy.items()}
                state_dict = {name: value for name, value in named.items() if name in wanted}
        loaded = super()._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)
        # transformers only warns of names that it does not know, and goes on with random weights.
        left = cls._dense_format_of(list(loaded[0].unexpected_keys))
        if left is not None:
            raise CheckpointError(
                f"these are the weights of a {left.name}, given as a state_dict or pickled; experts are built from "
                "safetensors files only: save the dense model with save_pretrained and load that folder"
            )
        if checkpoint_files and len(loaded[0].missing_keys) >= len(wanted):
            found = sorted(loaded[0].unexpected_keys)
            dense_names = "".join(f" nor of a {dense.name}" for dense in cls._formats())
            raise CheckpointError(
                f"{checkpoint_files[0]} and its shards hold {len(found)} tensors such as {found[:1]}, none of which "
                f"{type(model).__name__} has; its weights are neither those of this family{dense_names}"
            )
        return loaded

    @classmethod
    def _finalize_model_loading(cls, model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        source = load_config.pretrained_model_name_or_path
        if not load_config.ignore_mismatched_sizes:
            _refuse_misfits(model, source, loading_info.mismatched_keys)
        # Here tied parameters are told from missing ones.
        loading_info = super()._finalize_model_loading(model, load_config, loading_info)
        nothing_given = source is None and len(loading_info.missing_keys) == len(model.state_dict())
        if not (load_config.ignore_mismatched_sizes or (nothing_given and not loading_info.unexpected_keys)):
            _refuse_chance(model, source, loading_info.missing_keys, loading_info.unexpected_keys)
        return loading_info

    @classmethod
    def _dense_format_of(cls, names: Iterable[str]) -> DenseFormat | None:
        names = list(names)
        return next((dense for dense in cls._formats() if dense.recognises(names)), None)

    @classmethod
    def _formats(cls) -> tuple[DenseFormat, ...]:
        return cast(type[LoadsDense], cls.model_class or cls).dense_formats


def _pickled_weights(folder: str | os.PathLike | None) -> str | None:
    if folder is None or not Path(folder).is_dir() or any(Path(folder).glob("*.safetensors")):
        return None
    return next((str(path) for path in sorted(Path(folder).glob("pytorch_model*.bin"))), None)


def _refuse_misfits(model: PreTrainedModel, source: Any, misfits: Iterable[tuple]) -> None:
    found = [f"{name} of {tuple(stored)} instead of {tuple(needed)}" for name, stored, needed in sorted(misfits)]
    if found:
        raise CheckpointError(
            f"{source or 'the state_dict'} holds {len(found)} tensors of other sizes than those of "
            f"{type(model).__name__} ({listed(found)}); {_WAY_OUT}"
        )


def _refuse_chance(model: PreTrainedModel, source: Any, missing: set[str], unexpected: set[str]) -> None:
    """Refuse what transformers only warns of: parameters drawn at random, and weights that are dropped."""
    prefix = f"{model.base_model_prefix}."
    body = model.base_model
    parts = {name.partition(".")[0] for name in body.state_dict()}
    # A checkpoint of this very class has its head.
    adds_head = body is not model and type(model).__name__ not in (model.config.architectures or [])
    lost = {name for name in missing if not adds_head or name.startswith(prefix)}
    # Heads of other tasks may be left behind.
    left = {name for name in unexpected if name.startswith(prefix) or name.partition(".")[0] in parts}
    wrong = []
    if lost:
        wrong.append(f"lacks {len(lost)} of the model's tensors ({listed(lost)}), which would start at random")
    if left:
        wrong.append(f"holds {len(left)} tensors that the model has no place for ({listed(left)})")
    if wrong:
        raise CheckpointError(f"{source or 'the state_dict'} {' and '.join(wrong)}; {_WAY_OUT}")


def _require_safe_files(files: list[str], source: str | os.PathLike | None) -> None:
    """Whatever named the files: an index on the Hub, or a `config.json`."""
    require_safetensors(files)
    if source is not None and Path(source).is_dir():
        require_inside(source, [os.path.abspath(file) for file in files], source)


def _require_safe_index(folder: str | os.PathLike | None, subfolder: str | None, variant: str | None) -> None:
    """Look at a local index before transformers does, which would go wherever it leads."""
    path = None if folder is None else Path(folder, subfolder or "")
    if path is None or (path / f"model.{variant}.safetensors".replace(".None.", ".")).is_file():
        return
    for index in sorted(path.glob(_SAFE_INDEXES)):
        indexed_files(index)
        _require_metadata(index)


def _require_metadata(index: Path) -> None:
    if not isinstance(json_object(index).get("metadata"), dict):
        raise CheckpointError(f'{index} has no "metadata", which transformers needs; add {{"total_size": 0}}')


def _cached_index(repo_id: str | os.PathLike | None, options: dict[str, Any]) -> Path | None:
    """The index of shards in the local cache of the Hub; None where there is none, or it is no repository."""
    if repo_id is None or Path(repo_id).is_dir():
        return None
    name = "/".join(filter(None, (options.get("subfolder"), "model.safetensors.index.json")))
    try:
        found = try_to_load_from_cache(
            str(repo_id), name, cache_dir=options.get("cache_dir"), revision=options.get("revision")
        )
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
