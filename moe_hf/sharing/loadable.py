"""Checks that the weights in a folder are those of the model that its configuration names, without reading them."""

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from moe_hf.base.errors import CheckpointError, ConfigError, first_line
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.cards.described import is_quantized
from moe_hf.models.cards.loading import task_of
from moe_hf.models.dense.checkpoint_files import json_object, listed


def require_loadable(folder: Path) -> str | None:
    """Build the model without memory, and compare the names and shapes of its parameters with those of its files.

    Returns:
        Why nothing could be compared, or None where all was.

    Raises:
        CheckpointError: a parameter is missing or has another shape, or the configuration is none.
    """
    found = json_object(folder / "config.json")
    names = found.get("architectures") or [""]
    model_type = found.get("model_type")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{folder / 'config.json'} has architectures={names!r}; write a list of names of classes")
    if not isinstance(model_type, str | None):
        raise CheckpointError(f"{folder / 'config.json'} has model_type={model_type!r}; write the name of a type")
    model_class = _class_of(folder, names[0])
    if found.get("quantization_config") and not is_quantized(found):
        return "the weights are quantised"
    if model_class is None:
        return f"neither transformers nor moe_hf has a class {names[0] or 'for it (config.json names no architecture)'}"
    verbosity, draws = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_draws = not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    # Else transformers' own classes log the names of what does not fit, and their error has none.
    options = {"ignore_mismatched_sizes": model_class is getattr(transformers, names[0], None)}
    try:
        _, info = model_class.from_pretrained(
            folder, device_map="meta", output_loading_info=True, local_files_only=True, use_safetensors=True, **options
        )
    except (CheckpointError, ConfigError):
        raise
    # transformers says what is wrong with a folder by errors of any kind.
    except Exception as error:
        raise CheckpointError(f"{folder} can't be loaded as a {names[0]}: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if draws:
            # It turns those of huggingface_hub on as well.
            logging.enable_progress_bar()
        (enable_progress_bars if hub_draws else disable_progress_bars)()
    wrong = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if wrong:
        raise CheckpointError(
            f"{folder} lacks {len(wrong)} of the parameters of its {names[0]}, or has them in other shapes "
            f"({listed(sorted(wrong))}); save the whole model again"
        )
    return None


def _class_of(folder: Path, name: str) -> Any:
    """The class of that name of transformers' own, or the Auto class that gives it; None where the type is unknown."""
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    if json_object(folder / "config.json").get("model_type") not in transformers.CONFIG_MAPPING:
        return None
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return getattr(transformers, task_of(name)[0]) if isinstance(config, MoEDecoderConfig) else None
