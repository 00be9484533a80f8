"""Writes the folder of a model whose experts are stored in 8 or 4 bits, from one with floats: atomically."""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from moe_hf.base.destination import require_free_folder
from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import atomic_folder
from moe_hf.base.model_source import find_model
from moe_hf.layers.experts.quantized import quantized_stack_of
from moe_hf.models.cards.card import CARD_FILE, metadata_of, placeholder, split_card, table, told_name, written_card
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.models.upcycling.companions import carry_over
from moe_hf.models.upcycling.opened import OpenedModel, open_model
from moe_hf.models.upcycling.weights import require_shard_size
from moe_hf.quantization.quantization_config import MoEQuantizationConfig
from moe_hf.quantization.quantizer import quantized_modules

_FLOAT32 = 4
# Fields of a card's metadata that rounding changes nothing of.
_KEPT = ("license", "license_name", "license_link", "datasets", "language")

_USE = """## Use

With `moe_hf`, which knows the format:

```python
import moe_hf
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
```

Without `import moe_hf` transformers loads it too, but **with random experts**: it only warns that it knows no such
quantization and that weights are missing.
"""


class QuantizeReport(NamedTuple):
    """What was written.

    Attributes:
        folder: where.
        config: the format.
        parameters: how many numbers the model had.
        expert_weights: how many of them are in codes now.
        expert_bytes: what their codes and scales take, in memory and on disk.
        weight_bytes: what all files with weights take.
        carried: the files beside the weights that came along.
    """

    folder: Path
    config: MoEQuantizationConfig
    parameters: int
    expert_weights: int
    expert_bytes: int
    weight_bytes: int
    carried: list[str]

    @property
    def share_of_float32(self) -> float:
        """Bytes of the experts, relative to float32."""
        return self.expert_bytes / (_FLOAT32 * self.expert_weights)


def quantize_directory(
    source: str,
    destination: str | Path,
    config: MoEQuantizationConfig,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> QuantizeReport:
    """Write the Mixture of Experts of `source` into the new folder `destination`, with its experts in codes.

    One stack is in memory as numbers at a time; what is not quantised is there whole. All else keeps its dtype.
    Tokenizer and generation settings are carried over.

    Args:
        source: a folder or a Hub id of a model of this package or of transformers' classes.
        destination: must not exist, or be empty, unless `overwrite`.
        config: the format.
        max_shard_size: largest size of a weights file, such as "2GB".
        overwrite: replace `destination`, which must be a model's folder, once the new one is complete.

    Raises:
        CheckpointError: the source is no whole float model, or the destination is taken. Nothing is written then.
        ConfigError: the source has no experts, or they do not fit into the format, or a size is none.
    """
    given = Path(os.path.expanduser(destination))
    destination = given.absolute()
    require_shard_size(max_shard_size)
    # Asked before it is opened: of a GGUF file that would load all of it.
    if (file := find_model(source).gguf_file) is not None:
        raise CheckpointError(
            f"{source} is a GGUF file ({file}), whose weights are quantised already; name a model in safetensors"
        )
    opened = open_model(source)
    if opened.folder.resolve().is_relative_to(destination.resolve()):
        raise CheckpointError(f"{destination} holds the source {source}, which would be lost; choose another folder")
    require_free_folder(destination, overwrite)
    kept = _kept_metadata(opened.folder)
    model = _loaded(opened, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    expert_weights, expert_bytes = _of_experts(model)
    with atomic_folder(destination, partial(require_free_folder, destination, overwrite)) as aside:
        model.save_pretrained(aside, max_shard_size=max_shard_size)
        carried = carry_over(opened, aside)
        weight_bytes = sum(path.stat().st_size for path in aside.glob("*.safetensors"))
        report = QuantizeReport(
            given, config, parameters + expert_weights, expert_weights, expert_bytes, weight_bytes, carried
        )
        (aside / CARD_FILE).write_text(_card(source, destination.name, report, kept), encoding="utf-8")
    return report


def _loaded(opened: OpenedModel, config: MoEQuantizationConfig) -> Any:
    classifies = any("ForSequenceClassification" in name for name in opened.config.get("architectures") or [])
    loader: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    model, found = loader.from_pretrained(
        opened.folder, dtype="auto", quantization_config=config, output_loading_info=True, **opened.source.options
    )
    # transformers only warns of them, and fills or drops them.
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = {key if isinstance(key, str) else key[0] for key in found[what]}
        if names:
            raise CheckpointError(
                f"{opened.name} has {len(names)} {what.removesuffix('_keys')} tensors ({listed(names)}); "
                "it is not a whole checkpoint of its model"
            )
    return model


def _of_experts(model: Any) -> tuple[int, int]:
    """How many weights are in codes, and what these and their scales take."""
    weights, size = 0, 0
    for _, module in quantized_modules(model):
        for part in quantized_stack_of(module)[:2]:
            weights += len(part.codes) * part.rows * part.columns
            size += part.codes.nbytes + part.scales.nbytes
    return weights, size


def _kept_metadata(folder: Path) -> dict[str, Any]:
    """What the source's card says that holds for the new model too; nothing where it has none that can be read."""
    path = folder / CARD_FILE
    try:
        metadata = split_card(path.read_text(encoding="utf-8")).metadata if path.is_file() else {}
    except (CheckpointError, UnicodeDecodeError):
        return {}
    return {name: metadata[name] for name in _KEPT if metadata.get(name)}


def _card(source: str, name: str, report: QuantizeReport, kept: dict[str, Any]) -> str:
    config = report.config
    scales = (
        f"in groups of {config.group_size} with a scale and a zero each" if config.group_size else "one scale per row"
    )
    rows = [
        ("parameters", f"{report.parameters:,}"),
        (f"of these in {config.bits} bits", f"{report.expert_weights:,}"),
        ("bytes of the experts, of float32's", f"{report.share_of_float32:.3f}"),
    ]
    sections = [
        f"# {name}",
        f"`{told_name(source)}` with the weights of its experts rounded to {config.bits} bits, {scales}.\n"
        "All else is as it was.",
        table(rows),
        _USE.format(name=placeholder(name)),
    ]
    metadata = {**metadata_of(["quantized"], True, base_model=source), **kept}
    return written_card(placeholder(name), metadata, sections)
