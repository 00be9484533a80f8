"""Writes a model of this package with the code that it needs, so that it loads where the package is not installed."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from moe_hf.base.destination import require_free_folder, require_space
from moe_hf.base.errors import CheckpointError, first_line
from moe_hf.base.files import atomic_folder
from moe_hf.base.model_source import find_model
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.export.flatten import Tables, flatten
from moe_hf.models.auto import FAMILIES, Family
from moe_hf.models.cards.card import CARD_FILE, PICTURES, is_unedited, placeholder, renamed, with_section
from moe_hf.models.cards.described import card_of_folder, loading_of_folder
from moe_hf.models.cards.loading import how_to_load, task_of
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.upcycling.companions import carry_over
from moe_hf.models.upcycling.opened import OpenedModel, open_model, weight_files

_INDEX = "model.safetensors.index.json"
# Beside the weights, whose license may be another.
_LICENSE = "LICENSE.moe_hf"
_HEADING = "## Without moe_hf"
_RECORDS = ("run.yaml", "metrics.jsonl")
# What a finished model does not need: other packages' kernels would be asked for by transformers before it runs code.
_NEVER: Tables = {
    "moe_hf.models.dense.formats": {"DENSE_FORMATS": ()},
    "moe_hf.layers.experts.backends": {"EXPERTS_BACKENDS": ("auto", "scattermoe", "sorted")},
}


class SelfContainedReport(NamedTuple):
    """What was written.

    Attributes:
        folder: where.
        model_type: of the model.
        auto_class: of transformers, which loads it.
        code_files: names of the files of code, the entry first.
        code_lines: lines of code in all.
        weight_bytes: bytes of the files with weights.
        carried: what was taken along beside weights and code: tokenizer, generation settings, records of training.
        notices: what a user should know, a sentence each.
    """

    folder: Path
    model_type: str
    auto_class: str
    code_files: list[str]
    code_lines: int
    weight_bytes: int
    carried: list[str]
    notices: list[str]


def export_self_contained(
    source: str,
    destination: str | Path,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SelfContainedReport:
    """Write the model of `source` and its code into the new folder `destination`.

    transformers loads it with `trust_remote_code=True`, whether or not this package is installed.

    Args:
        source: a folder or a Hub id of a model of this package.
        destination: must not exist, or be empty, unless `overwrite`.
        overwrite: replace `destination`, which must be a model's folder, once the new one is complete.
        on_progress: called with (weights files done, weights files in all).

    Raises:
        CheckpointError: the source is no complete model of this package, the destination is taken, or the disk is too
            small. Nothing is written then.
    """
    given, destination = Path(destination).expanduser(), Path(destination).expanduser().absolute()
    require_free_folder(destination, overwrite)
    opened, family = _open(source)
    if opened.folder.resolve().is_relative_to(destination.resolve()):
        raise CheckpointError(f"{destination} holds the source {source}, which would be lost; choose another folder")
    config = _config_of(opened, family)
    code = code_of(config, family)
    texts = {**code, **_beside_code(opened, family)}
    files = _weight_files(opened.folder)
    sizes = [file.stat().st_size for file in files]
    notices = _notices(config)
    with atomic_folder(destination, partial(require_free_folder, destination, overwrite)) as aside:
        require_space(destination, sum(sizes), "another disk")
        for number, file in enumerate(files, start=1):
            shutil.copyfile(file, aside / file.name)
            if on_progress is not None:
                on_progress(number, len(files))
        carried = carry_over(opened, aside) + _carry_records(opened.folder, aside)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        (aside / CARD_FILE).write_text(_card(opened, destination.name, family, aside), encoding="utf-8")
    entry = f"{_entry_of(family)}.py"
    return SelfContainedReport(
        given,
        opened.model_type,
        _auto_class(opened, family),
        [entry, *(name for name in code if name != entry)],
        sum(len(text.splitlines()) for text in code.values()),
        sum(sizes),
        carried,
        notices,
    )


def self_contained_texts(source: str) -> dict[str, str]:
    """What makes the folder of a model self-contained: its code, and a `config.json` that names it; name -> text.

    Raises:
        CheckpointError: as of `export_self_contained`.
    """
    opened, family = _open(source)
    return {**code_of(_config_of(opened, family), family), **_beside_code(opened, family)}


def _beside_code(opened: OpenedModel, family: Family) -> dict[str, str]:
    described = {**opened.config, "architectures": _architectures(opened, family), "auto_map": auto_map_of(family)}
    license_text = _license()
    texts = {} if license_text is None else {_LICENSE: license_text}
    return {**texts, "config.json": json.dumps(described, indent=2, sort_keys=True) + "\n"}


def code_of(config: MoEDecoderConfig, family: Family) -> dict[str, str]:
    """The files of code that a model of this configuration needs: name -> text."""
    mixers = _mixers_of(config)
    tables = {**_NEVER, "moe_hf.layers.mixers": {"MIXERS": mixers}}
    parts = (family.config.__module__, family.causal_lm.__module__)
    return flatten(_entry_of(family), parts, _tail(family, "attention" in mixers), tables)


def auto_map_of(family: Family) -> dict[str, str]:
    """What `config.json` says of where the classes of a model are."""
    classes = {
        "AutoConfig": family.config,
        "AutoModel": family.model,
        "AutoModelForCausalLM": family.causal_lm,
        "AutoModelForSequenceClassification": family.sequence_classification,
    }
    return {auto: f"{_entry_of(family)}.{found.__name__}" for auto, found in classes.items()}


def _open(source: str) -> tuple[OpenedModel, Family]:
    # Asked before it is opened: of a GGUF file that would load all of it.
    if (file := find_model(source).gguf_file) is not None:
        raise CheckpointError(f"{source} is a GGUF file ({file}), which needs no code; name a model of moe_hf")
    opened = open_model(source)
    family = FAMILIES.get(opened.model_type)
    if family is None:
        raise CheckpointError(
            f"{source} is a {opened.model_type}, not one of {', '.join(FAMILIES)}; it loads without moe_hf as it is, "
            "if transformers has its class, and needs no export"
        )
    return opened, family


def _config_of(opened: OpenedModel, family: Family) -> MoEDecoderConfig:
    try:
        config: MoEDecoderConfig = family.config.from_dict(dict(opened.config))
    except Exception as error:
        # Configurations check their fields by errors of several kinds.
        raise CheckpointError(f"the config.json of {opened.name} is not allowed: {first_line(error)}") from error
    return config


def _mixers_of(config: MoEDecoderConfig) -> set[str]:
    """The mixers of a model and of the models that it is made of."""
    found = {*config.mixer_of_layer}
    local: Any = getattr(config, "local_decoder_config", None)
    return (found if local is None else found | _mixers_of(local)) - {"none"}


def _entry_of(family: Family) -> str:
    return f"modeling_{family.config.model_type}"


def _tail(family: Family, attends: bool) -> str:
    """What `import moe_hf` does beside defining classes, for one family."""
    lines = ["from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", ""]
    calls = ["register_experts_backends(replace=False)"]
    if attends:
        lines.append("from moe_hf.layers.attention.sparse import register_sparse_attention")
        calls.append("register_sparse_attention(replace=False)")
    lines += ["from moe_hf.layers.experts.backends import register_experts_backends", ""]
    lines += ["# Names for `experts_implementation` and `attn_implementation`, where nobody has taken them.", *calls]
    lines.append("# By this table of names the Trainer knows a model whose labels its label smoothing must shift.")
    lines.append(
        f'MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["{family.config.model_type}"] = {family.causal_lm.__name__}.__name__'
    )
    return "\n".join(lines) + "\n"


def _weight_files(folder: Path) -> list[Path]:
    files = [Path(file) for file in weight_files(folder)]
    return files if len(files) == 1 and files[0].name == "model.safetensors" else [*files, folder / _INDEX]


def _architectures(opened: OpenedModel, family: Family) -> list[str]:
    """As the model says; a checkpoint without the word is that of a causal language model."""
    return opened.config.get("architectures") or [family.causal_lm.__name__]


def _auto_class(opened: OpenedModel, family: Family) -> str:
    return task_of(str(_architectures(opened, family)[0]))[0]


def _notices(config: MoEDecoderConfig) -> list[str]:
    learners = {"sigmoid_bias", "expert_choice", "expert_threshold"} & {*config.router_of_sparse_layer}
    if not learners:
        return []
    return [
        f"training it further with transformers' Trainer leaves the states of its {' and '.join(sorted(learners))} "
        "routers where they are; moe-hf train moves them"
    ]


def _carry_records(source: Path, folder: Path) -> list[str]:
    """Copy what a training run left for readers beside its model; its card shows the pictures."""
    names = [name for name in (*PICTURES, *_RECORDS) if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return names


def _license() -> str | None:
    """The license of this package, as far as it is installed with one."""
    try:
        files = metadata.files("moe_hf") or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name == "LICENSE"]
    return next((path.read_text(encoding="utf-8") for path in paths if path.is_file()), None)


def _card(opened: OpenedModel, name: str, family: Family, folder: Path) -> str:
    """The source's README, or a new one, with how to load the model."""
    path = opened.folder / CARD_FILE
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text in UTF-8 ({error}); save it as such") from error
    if text is None:
        return card_of_folder(folder, placeholder(name), get_moe_model_info)
    if is_unedited(text):
        loading, _ = loading_of_folder(folder)
        return with_section(renamed(text, placeholder(name)), how_to_load(placeholder(name), loading))
    auto_class = _auto_class(opened, family)
    # Of an earlier export.
    text = text.partition(f"\n{_HEADING}\n")[0].rstrip()
    return f"""{text}

{_HEADING}

The code of this model is in this folder: a part of moe_hf, under the Apache License 2.0. Start to read it at
`{_entry_of(family)}.py`, before you let it run:

```python
from transformers import {auto_class}

model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)
```

Where moe_hf is installed, `import moe_hf` takes its place and no code of this folder runs.
"""
