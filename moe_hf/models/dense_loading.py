"""Lets `from_pretrained` of a family read dense checkpoints as well, and only files that cannot run code."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense_fit import fitting_state
from moe_hf.models.dense_source import DenseFormat, open_slices


class LoadsDense(PreTrainedModel):
    """Base of all models; `dense_formats` are the dense architectures that a family can start from."""

    dense_formats: ClassVar[tuple[DenseFormat, ...]] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """The model of a directory or Hub id: one of this family, or a dense one, whose FFNs become experts.

        Fields of the configuration may be given as keywords, `num_experts=8, num_experts_per_tok=2, expert_init=...`
        among them. Everything else is as in transformers: `dtype`, `device_map`, `offload_folder`, `revision`, ...

        Raises:
            CheckpointError: another kind of model, missing or misfitting tensors, a damaged file, or only pickled
                weights.
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
            kwargs.setdefault("use_safetensors", True)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} holds a safetensors file that can't be read ({error}); it is "
                "incomplete or damaged: download it again"
            ) from error
        except OSError as error:
            pickled = _pickled_weights(pretrained_model_name_or_path)
            if pickled is None:
                raise
            # Names the file and the way out.
            open_slices([pickled])
            raise error

    @classmethod
    def _load_pretrained_model(
        cls,
        model: PreTrainedModel,
        state_dict: dict | None,
        checkpoint_files: list[str] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        wanted = model.state_dict().keys()
        if state_dict is None and checkpoint_files and checkpoint_files[0].endswith(".safetensors"):
            slices = open_slices(checkpoint_files)
            dense = cls._dense_format_of(slices)
            if dense is not None:
                # Without a head the model's own names lack the prefix.
                bare = not any(name.startswith("model.") for name in wanted)
                config = cast(MoEDecoderConfig, model.config)
                body = type(cast(PreTrainedModel, model.base_model))
                lazy = fitting_state(
                    dense, slices, checkpoint_files[0], config, body, "lm_head.weight" in wanted, model.dtype
                )
                named = {name.removeprefix("model.") if bare else name: value for name, value in lazy.items()}
                state_dict = {name: value for name, value in named.items() if name in wanted}
        loaded = super()._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        # transformers only warns of names that it does not know, and goes on with random weights.
        left = cls._dense_format_of(list(loaded[0].unexpected_keys))
        if left is not None:
            raise CheckpointError(
                f"these are the weights of a {left.name}, given as a state_dict or pickled; experts are built from "
                "safetensors files only: save the dense model with save_pretrained and load that folder"
            )
        if checkpoint_files and len(loaded[0].missing_keys) >= len(wanted):
            found = sorted(loaded[0].unexpected_keys)
            dense_names = "".join(f" nor of a {dense.name}" for dense in cls.dense_formats)
            raise CheckpointError(
                f"{checkpoint_files[0]} and its shards hold {len(found)} tensors such as {found[:1]}, none of which "
                f"{type(model).__name__} has; its weights are neither those of this family{dense_names}"
            )
        return loaded

    @classmethod
    def _dense_format_of(cls, names: Iterable[str]) -> DenseFormat | None:
        names = list(names)
        return next((dense for dense in cls.dense_formats if dense.recognises(names)), None)


def _pickled_weights(folder: str | os.PathLike | None) -> str | None:
    if folder is None or not Path(folder).is_dir() or any(Path(folder).glob("*.safetensors")):
        return None
    return next((str(path) for path in sorted(Path(folder).glob("pytorch_model*.bin"))), None)
