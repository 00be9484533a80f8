"""Finds trained models on disk: which folders are whole models, which is the newest, which has experts."""

import shlex
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from moe_hf.base.errors import CheckpointError
from moe_hf.base.model_folder import weights_file
from moe_hf.config.architectures import architecture_config, is_of_architecture


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether a model of this config has at least one sparse layer, ours or of any transformers family."""
    layer_types = getattr(config, "mlp_layer_types", None)
    if layer_types is not None:
        return "sparse" in layer_types
    # What the families of transformers call it.
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in names)


def newest_model(runs_dir: Path, architecture: str | None = None) -> Path:
    """The model under `runs_dir` whose weights were written last.

    Each run folder counts, and so do its `checkpoint-N` folders, so that a run that was stopped early can be talked to.

    Args:
        runs_dir: the folder that holds the run folders.
        architecture: `moe` or `dense`, or a family or pattern of mixers as `moe_hf.config.architectures` reads them, to
            look only at such models; None for any.

    Raises:
        CheckpointError: there is none; the text says which command trains one.
        ConfigError: the architecture is unknown.
    """
    if architecture not in (None, "moe", "dense"):
        architecture_config(str(architecture))
    found: list[tuple[float, Path]] = []
    # A run folder comes before its checkpoints: among equally old weights the finished model wins.
    for folder in [*sorted(runs_dir.glob("*/")), *sorted(runs_dir.glob("*/checkpoint-*/"))]:
        weights = weights_file(folder)
        if weights is not None:
            found.append((weights.stat().st_mtime, folder))
    for _, folder in sorted(found, key=lambda item: item[0], reverse=True):
        if architecture is None or _is_a(folder, architecture):
            return folder
    raise CheckpointError(_nothing_found(runs_dir, architecture))


def is_a(config: PreTrainedConfig, architecture: str) -> bool:
    """Whether a model of this config is of an architecture, in the words of `newest_model`."""
    if architecture in ("moe", "dense"):
        return has_experts(config) == (architecture == "moe")
    return is_of_architecture(config, architecture)


def _is_a(folder: Path, architecture: str) -> bool:
    try:
        return is_a(AutoConfig.from_pretrained(folder), architecture)
    except (OSError, ValueError):
        # A broken folder is of no kind; it must not hide the whole ones.
        return False


def _nothing_found(runs_dir: Path, architecture: str | None) -> str:
    kind = "" if architecture is None else f"{architecture} "
    flag = "" if architecture is None else f" --architecture {shlex.quote(architecture)}"
    return (
        f"there is no trained {kind}model under {runs_dir}/ (looked for folders with config.json, *.safetensors and a "
        f"tokenizer); train one with: python train.py{flag}   or name one with: --model FOLDER_OR_HUB_ID"
    )
