"""Writes the card of a model from what is known of it: its configuration, and the files beside its weights."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from moe_hf.base.tokenizer_source import TOKENIZER_FILES
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.cards.card import PICTURES, metadata_of, shown, size_rows, table, written_card
from moe_hf.models.cards.loading import Loading, how_to_load, task_of
from moe_hf.models.dense.checkpoint_files import json_object

_STATE_FILE = "trainer_state.json"
# What a log line of a training run may hold -> how a card says it; the last value counts.
_LOGGED = {
    "cross_entropy": ("training loss", "{:.4f} nats per label, cross-entropy alone"),
    "loss": ("training loss", "{:.4f}"),
    "eval_loss": ("held-out loss", "{:.4f} nats per label, cross-entropy alone"),
    "eval_bits_per_byte": ("held-out bits per byte", "{:.4f}, whatever the tokenizer"),
}


def described_card(
    name: str,
    info: dict[str, Any] | None,
    loading: Loading,
    pipeline_tag: str = "text-generation",
    numbers: Iterable[tuple[str, str]] = (),
    pictures: Iterable[str] = (),
    **metadata: Any,
) -> str:
    """The card of a model of which no more is known than this.

    Args:
        name: its id on the Hub.
        info: its counts, as `get_moe_model_info` gives them; None where transformers has no class for it.
        loading: how it is loaded.
        pipeline_tag: its task.
        numbers: more rows of the table, of its training say.
        pictures: names of the files beside it.
        **metadata: as in `metadata_of`.
    """
    is_sparse = info is not None and info["moe_layers"] > 0
    kind = "Mixture of Experts" if is_sparse else "model"
    rows = [] if info is None else [*sizes_of(info), ("context", f"{info['context_length']:,} tokens")]
    rows += numbers
    pictures = list(pictures)
    sections = [f"# {name.rpartition('/')[2]}\n", f"A {kind} of the type `{loading.model_type}`.\n"]
    sections += ["## Numbers\n", table(rows)] if rows else []
    sections += [how_to_load(name, loading)]
    sections += ["## Training\n", shown(pictures)] if pictures else []
    return written_card(name, metadata_of(metadata.pop("tags", ()), is_sparse, pipeline_tag, **metadata), sections)


def card_of_folder(
    folder: Path, name: str, count: Callable[[PreTrainedConfig], dict[str, Any]], has_code: bool | None = None
) -> str:
    """The card of the model in a folder.

    Args:
        folder: of the model.
        name: its id on the Hub.
        count: counts its parameters, as `get_moe_model_info` does.
        has_code: whether Python files beside the weights define it; None where its `config.json` says so.

    Raises:
        CheckpointError: a file of it that the card speaks of is no JSON object.
    """
    loading, config = loading_of_folder(folder, has_code)
    task = task_of(_architecture(json_object(folder / "config.json")))[1]
    pictures = [picture for picture in PICTURES if (folder / picture).is_file()]
    numbers = logged_rows(*_logged(folder))
    tags = ["custom_code"] if loading.has_code else []
    return described_card(name, counts_of(config, count), loading, task, numbers, pictures, tags=tags)


def loading_of_folder(folder: Path, has_code: bool | None = None) -> tuple[Loading, PreTrainedConfig | None]:
    """How the model in a folder is loaded, and its configuration, None where transformers has no class for it.

    Args:
        folder: of the model.
        has_code: as in `card_of_folder`.
    """
    found = json_object(folder / "config.json")
    model_type = str(found.get("model_type"))
    # Of a type that transformers does not know, code beside the weights is not run to learn more.
    is_known = model_type in CONFIG_MAPPING
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if is_known else None
    loading = Loading(
        model_type,
        is_own=isinstance(config, MoEDecoderConfig),
        has_code=bool(found.get("auto_map")) if has_code is None else has_code,
        auto_class=task_of(_architecture(found))[0],
        has_tokenizer=any((folder / file).is_file() for file in TOKENIZER_FILES),
        is_quantized=is_quantized(found),
    )
    return loading, config


def is_quantized(found: dict[str, Any]) -> bool:
    """Whether a `config.json` is of a model whose experts this package has quantised."""
    quantization = found.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "moe_hf"


def _architecture(found: dict[str, Any]) -> str:
    names = found.get("architectures") or [""]
    return str(names[0]) if isinstance(names, list) else ""


def counts_of(
    config: PreTrainedConfig | None, count: Callable[[PreTrainedConfig], dict[str, Any]]
) -> dict[str, Any] | None:
    """What `count` says of a configuration; None where it cannot count such a model, or there is none."""
    try:
        return None if config is None else count(config)
    # It knows language models; of others it fails in the ways of the class that it tries to build.
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError):
        return None


def sizes_of(info: dict[str, Any]) -> list[tuple[str, str]]:
    """`size_rows` of the counts that `get_moe_model_info` gives."""
    return size_rows(
        info["total_params"],
        info["active_params"],
        info["num_experts"],
        info["num_experts_per_tok"],
        info["moe_layers"],
        info["dense_layers"],
    )


def logged_rows(step: int, history: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """The last numbers that a Trainer logged, as rows of `table`; none before its first step."""
    if not step:
        return []
    last: dict[str, Any] = {}
    for entry in history:
        last |= {key: value for key, value in entry.items() if isinstance(value, int | float)}
    rows: dict[str, str] = {}
    for key, (label, form) in _LOGGED.items():
        if key in last:
            rows.setdefault(label, form.format(last[key]))
    return [("steps", f"{step:,}"), *rows.items()]


def _logged(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    if not (folder / _STATE_FILE).is_file():
        return 0, []
    state = json_object(folder / _STATE_FILE)
    step, history = state.get("global_step"), state.get("log_history")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    return step if isinstance(step, int) else 0, entries
