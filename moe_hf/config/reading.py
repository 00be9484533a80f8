"""How a configuration is read from files, overridden on loading, and written: what `config.json` may say."""

import difflib
import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from moe_hf.base.errors import CheckpointError, ConfigError, did_you_mean
from moe_hf.config.derived import DerivedFields

# Beyond it no machine could hold the model.
MOST_LAYERS = 10_000
# Derived fields that files of earlier versions do not have; the first is in none.
_LATER = ("layer_types", "num_key_value_heads", "attention_head_dim", "attention_output_bias")


class ReadConfig(DerivedFields):
    """A configuration that reads its own family's `config.json`, and those of the dense models it can start from.

    Attributes:
        dense_model_types: the `model_type` of those dense models.
        takes_dense_unasked: whether such a model becomes one of this family wherever it is named; where not, it stays
            dense, or becomes another class's, unless this family is asked for.
    """

    dense_model_types: ClassVar[tuple[str, ...]] = ()
    takes_dense_unasked: ClassVar[bool] = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a `config.json`'s content; keyword arguments override its fields.

        transformers assigns the overrides after construction, when the validation has already seen the old values;
        here they go in first.
        """
        if cls.__module__.startswith("moe_hf."):
            # An exported model names the code beside it, which this class is not, and which saving it would not copy.
            config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
        names = {*cls.__dataclass_fields__, *cls.attribute_map}
        # transformers itself treats these two, since dtype may be "auto".
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in names - {"dtype", "torch_dtype"}}
        overrides = {cls.attribute_map.get(key, key): value for key, value in overrides.items()}
        # Where the file names the field by an alias, both names would be given at once, which is refused.
        config_dict = {key: value for key, value in config_dict.items() if cls.attribute_map.get(key) not in overrides}
        # It follows from the other fields, and files of earlier versions have other words for it.
        config_dict = {key: value for key, value in config_dict.items() if key != "layer_types"}
        if config_dict.get("rope_parameters") and "rope_theta" in overrides:
            # The file says it twice, for transformers' sake.
            config_dict["rope_parameters"] = {**config_dict["rope_parameters"], "rope_theta": None}
        config_dict = cls._left_out_again(config_dict) if overrides else config_dict
        if "max_position_embeddings" in overrides and config_dict.get("hyena_filter_time_base") is None:
            # Files of earlier versions do not say what their filters were trained with.
            default = cls.__dataclass_fields__["max_position_embeddings"].default
            config_dict["hyena_filter_time_base"] = config_dict.get("max_position_embeddings", default)
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    @classmethod
    def _left_out_again(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        """A file's content without the values that were derived, so that they follow the overrides.

        Files of earlier versions hold the value of every field; in later ones, null tells what was left out.
        """
        if any(
            config_dict.get(name) is None for name in cls.derived_fields if name in config_dict or name not in _LATER
        ):
            return config_dict
        usual = cls._derived_from(config_dict)
        return {key: value for key, value in config_dict.items() if key not in usual or value != usual[key]}

    @classmethod
    def _derived_from(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        # No configuration is made: the file may hold what is only right together with the overrides.
        given = {cls.attribute_map.get(key, key): value for key, value in config_dict.items()}
        probe, usual = cls.__new__(cls), {}
        try:
            most = MOST_LAYERS
            probe.__dict__.update(given)
            probe.require(1 <= probe.num_hidden_layers <= most, "num_hidden_layers", f"an integer >= 1 and <= {most}")
            for name in cls.derived_fields:
                probe.__dict__.update({**given, name: None})
                usual[name] = getattr(probe, name)
        except (ConfigError, TypeError, ZeroDivisionError):
            # What is wrong with the file is said when the configuration is made, if the overrides do not mend it.
            return {}
        return usual

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of `config.json` and the unused keyword arguments; a dense model's is translated.

        Raises:
            CheckpointError: there is no such file, or it describes another kind of model.
        """
        try:
            found, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (TypeError, AttributeError, RecursionError, OSError) as error:
            # transformers says of text that is no JSON what it says of a file that it cannot get.
            if isinstance(error, OSError) and not isinstance(
                error.__context__, json.JSONDecodeError | UnicodeDecodeError
            ):
                raise
            raise CheckpointError(
                f"the config.json of {pretrained_model_name_or_path} is no JSON object ({error}); download it again"
            ) from error
        if not isinstance(found, dict):
            raise CheckpointError(
                f"the config.json of {pretrained_model_name_or_path} holds a {type(found).__name__}, not a JSON "
                "object; download it again"
            )
        if not found:
            # transformers takes the defaults, the shape of some other model.
            raise CheckpointError(f"{pretrained_model_name_or_path} has no config.json; name a folder that has one")
        model_type = model_type_in(found, pretrained_model_name_or_path)
        if model_type in cls.dense_model_types:
            return cls.dict_from_dense(found), unused
        if model_type != cls.model_type:
            dense = f" and dense {', '.join(map(repr, cls.dense_model_types))} checkpoints"
            raise CheckpointError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}; this family reads "
                f"{cls.model_type!r}{dense if cls.dense_model_types else ''}"
            )
        return found, unused

    @classmethod
    def dict_from_dense(cls, dense: dict[str, Any]) -> dict[str, Any]:
        """This family's `config.json` for the content of a dense model's, one of `dense_model_types`.

        Raises:
            CheckpointError: the dense model uses a feature that would change its logits here.
        """
        raise NotImplementedError(f"{cls.__name__} reads no dense checkpoints")

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, but for `layer_types`, which follows from the other fields.

        transformers reads a `config.json` also by its base class, which refuses words that it does not know there, and
        rotary positions without their base.
        """
        values = {key: value for key, value in super().to_dict().items() if key != "layer_types"}
        if values.get("rope_parameters") is not None:
            values["rope_parameters"] = {**values["rope_parameters"], "rope_theta": values["rope_theta"]}
        return values

    def _refuse_what_transformers_cannot_read(self, kwargs: dict[str, Any]) -> None:
        # Before anything is derived: lists of layers, labels, the type of the weights.
        most = MOST_LAYERS
        self.require(1 <= self.num_hidden_layers <= most, "num_hidden_layers", f"an integer >= 1 and <= {most}")
        for name in ("id2label", "label2id"):
            self.require(isinstance(getattr(self, name, None), dict | None), name, "None or a dictionary")
        dtype = kwargs.get("torch_dtype", self.dtype)
        word = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
        if dtype not in (None, "auto") and not isinstance(word, torch.dtype):
            raise ConfigError(f"dtype={dtype!r} is not allowed; it must be None or a type such as float32 or bfloat16")
        labels = kwargs.get("num_labels")
        if labels is not None and (isinstance(labels, bool) or not isinstance(labels, int) or labels < 0):
            raise ConfigError(f"num_labels={labels!r} is not allowed; it must be an integer >= 0")

    def _refuse_misspelt_fields(self, unknown: dict[str, Any]) -> None:
        # Unknown keys are legal in a config.json of the Hub, so only near misses of a real field are refused.
        names = [*self.__dataclass_fields__, *self.attribute_map]
        for key in unknown:
            legal = key == "model_type" or key.startswith("_")
            if not legal and difflib.get_close_matches(key, names, n=1, cutoff=0.9):
                raise ConfigError(
                    f"{type(self).__name__}: unknown field {key!r}{did_you_mean(key, names)}; remove it or correct it"
                )


def model_type_in(found: Mapping[str, Any], source: Any) -> str:
    """The `model_type` of a `config.json`'s content; old files of GPT-2, which lack it, are known by their fields.

    Args:
        found: the content.
        source: what the error calls the model.

    Raises:
        CheckpointError: the file says no type, and is no GPT-2's.
    """
    if found.get("model_type"):
        return str(found["model_type"])
    if "ssm_cfg" in found:
        # transformers reads another layout, into which the authors have converted all of their models.
        raise CheckpointError(
            f"{source} is in mamba-ssm's own layout, which transformers does not read; take the converted repository, "
            "such as state-spaces/mamba-130m-hf for state-spaces/mamba-130m"
        )
    if {"n_embd", "n_layer", "n_head"} <= found.keys():
        return "gpt2"
    raise CheckpointError(
        f"the config.json of {source} has no model_type (it has {', '.join(sorted(found)[:5]) or 'no field'}), so that "
        "nobody can tell what its weights are; add it"
    )
