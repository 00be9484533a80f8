"""Works out, before the first step, how long a run is and how much memory it needs."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig, TrainingArguments

from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.models.info import get_moe_model_info
from moe_hf.training.data.prepare import TrainingData
from moe_hf.training.data.sources import generated_source
from moe_hf.training.runs.listeners import RunPlan
from moe_hf.training.runs.settings import Settings

_FLOAT32, _BFLOAT16 = 4, 2
MANY_PASSES = 20
"""More passes over the data than this are worth a warning."""

# A run of fewer steps has hardly begun to learn.
_FEW_STEPS = 200
# On 22 KB of text the tiny model's held-out loss was lowest after six passes at a rate meant for twenty or forty.
_MOST_PASSES = 10
# Good weights are soon spoilt by reading the same again.
_MOST_PASSES_CONTINUED = 5
_LEAST_LOG_LINES = 20

# Of the longest row of a starting model, where nothing else is asked for.
_USUAL_CONTEXT, _USUAL_CONTEXT_CPU = 1024, 256

_SECONDS_FLOPS = 2e12
_TRIED_WIDTH, _TRIED_SECONDS = 1024, 0.3
# What training reaches of it, about.
_SHARE_OF_MATRIX_SPEED = 0.4


def make_plan(
    title: str,
    config: PreTrainedConfig,
    data: TrainingData,
    data_name: str,
    context_length: int,
    training: TrainingArguments,
    output_dir: Path,
) -> RunPlan:
    """The plan of a run whose model and data are known; the model need not be built."""
    rows, info = rows_per_step(training), get_moe_model_info(config)
    return RunPlan(
        title=title,
        info=info,
        sparse_layers=info["sparse_layers"],
        data=data_name,
        device=_device_name(training),
        output_dir=output_dir,
        checkpoint=None,
        num_steps=num_training_steps(data, training, rows),
        tokens_per_step=tokens_per_step(data, rows, context_length),
        num_documents=data.num_documents,
        tokens_per_pass=data.num_tokens,
        train_state_bytes=info["train_state_bytes"],
        activation_bytes=activation_bytes(config, training.per_device_train_batch_size * context_length, training),
        memory_bytes=free_memory(training.device),
    )


def fit_to_data(settings: Settings, data: TrainingData) -> list[str]:
    """Choose what the user did not: how often small data of his own is read, and how often a short run is logged.

    Changes `settings`, and returns sentences about it.
    """
    given, training, notices = settings.given, settings.training, []
    rows = rows_per_step(training)
    steps = num_training_steps(data, training, rows)
    if epochs_follow_data(settings) and data.num_tokens is not None and steps < _FEW_STEPS:
        most = _MOST_PASSES_CONTINUED if settings.model.model or settings.model.upcycle else _MOST_PASSES
        passes = min(most, math.ceil(_FEW_STEPS / steps))
        training.num_train_epochs = settings.chosen["num_train_epochs"] = float(passes)
        notices.append(
            f"the data is small: {data.num_tokens:,} tokens are {steps:,} steps, too few to learn from, so it is read "
            f"{passes} times; give more data, or your own --num_train_epochs"
        )
        steps = num_training_steps(data, training, rows)
    if not {"logging_steps", "logging_strategy"} & given.keys() and training.logging_steps >= 1:
        often = max(1, min(int(training.logging_steps), steps // _LEAST_LOG_LINES))
        training.logging_steps = settings.chosen["logging_steps"] = often
    warm_up = training.get_warmup_steps(steps)
    if warm_up >= steps and training.learning_rate > 0:
        notices.append(
            f"the learning rate still rises when the run ends: the warm-up has {warm_up:,} steps, the run {steps:,}; "
            "lower --warmup_steps (below 1 it is a share of the run)"
        )
    return notices


def epochs_follow_data(settings: Settings) -> bool:
    """Whether the size of the data decides how often it is read."""
    named = {"num_train_epochs", "max_steps"} & settings.given.keys()
    return not named and settings.training.max_steps <= 0 and generated_source(settings.data.data) is None


def rows_per_step(training: TrainingArguments) -> int:
    """Rows that all processes together read for one optimizer step."""
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def tokens_per_step(data: TrainingData, rows: int, context_length: int) -> int:
    """Tokens of an optimizer step: of full blocks all, of rows that are padded to the longest the real ones."""
    return rows * context_length if data.row_tokens is None else round(rows * data.row_tokens)


def guessed_seconds(plan: RunPlan, training: TrainingArguments) -> float:
    """How long a run of which no step can be tried would take, at a fraction of this machine's matrix speed."""
    matrix = torch.ones(_TRIED_WIDTH, _TRIED_WIDTH, device=training.device)
    begun, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < _TRIED_SECONDS:
        # Reading a value waits for the device.
        float((matrix @ matrix)[0, 0])
        done += 1
    speed = training.world_size * _SHARE_OF_MATRIX_SPEED * done * 2 * _TRIED_WIDTH**3 / seconds
    return 3 * plan.info["flops_per_token"] * plan.total_tokens / speed


def num_training_steps(data: TrainingData, training: TrainingArguments, rows_per_step: int) -> int:
    """Optimizer steps of the whole run, counted as the Trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    # A stream has no length; parsing has made sure that max_steps is given for it.
    return math.ceil(training.num_train_epochs * max(1, math.ceil(len(data.train) / rows_per_step)))  # type: ignore[arg-type]


def rows_in_seconds(info: Mapping[str, Any], training: TrainingArguments, context_length: int) -> int:
    """Rows of a micro-batch that takes some seconds at most: on a CPU perhaps fewer than are asked for."""
    rows = training.per_device_train_batch_size
    if training.device.type != "cpu":
        return rows
    flops_per_row = 3 * info["flops_per_token"] * context_length
    return max(1, min(rows, int(_SECONDS_FLOPS / flops_per_row)))


def usual_context_length(settings: Settings, longest: int) -> int:
    """Tokens of a row where the user does not say: all that a model has, but of one made by others no more than usual.

    Models of today take rows that are longer than the texts that people have, and than their machines can train on.
    """
    if not (settings.model.model or settings.model.upcycle):
        return longest
    return min(longest, _USUAL_CONTEXT_CPU if settings.training.device.type == "cpu" else _USUAL_CONTEXT)


def fit_to_machine(settings: Settings, info: Mapping[str, Any], context_length: int) -> list[str]:
    """Choose what the user did not: fewer rows where the CPU would take minutes for a step of a starting model.

    Changes `settings`, and returns sentences about it.
    """
    notices: list[str] = []
    if not (settings.model.model or settings.model.upcycle):
        return notices
    if settings.data.context_length is None and context_length < info["context_length"]:
        notices.append(
            f"rows are {context_length:,} tokens long, though the model takes {info['context_length']:,}; give "
            "--context_length for longer ones"
        )
    rows = rows_in_seconds(info, settings.training, context_length)
    if "per_device_train_batch_size" not in settings.given and rows < settings.training.per_device_train_batch_size:
        settings.training.per_device_train_batch_size = settings.chosen["per_device_train_batch_size"] = rows
        notices.append(
            f"a step has {rows} rows only, since a CPU takes long for this model; give --per_device_train_batch_size "
            "for more"
        )
    return notices


def activation_bytes(config: PreTrainedConfig, tokens: int, training: TrainingArguments) -> int:
    """About how many bytes one forward pass keeps for its backward pass.

    Counted per token: in each layer the inputs of norms, projections and activations (twelve widths, and two FFN widths
    for each FFN that a token visits); at the head the logits in float32, three times. Attention weights are not
    kept by fused attention. With gradient checkpointing a layer keeps one width, and one layer at a time is whole.
    MegaByte's tokens are bytes: its global decoder sees one patch for many, the local one reads some of them twice.
    """
    if isinstance(config, MegaByteWithMoEConfig):
        patches = math.ceil(tokens / config.patch_size)
        places = patches * (config.patch_size + config.lookback)
        kept = patches * _kept_by_layers(config, training)
        kept += places * _kept_by_layers(config.local_decoder_config, training)
    else:
        kept = tokens * _kept_by_layers(config, training)
    return kept + tokens * 3 * _FLOAT32 * config.vocab_size


def _kept_by_layers(config: PreTrainedConfig, training: TrainingArguments) -> int:
    """Bytes that the layers of a decoder keep of one place."""
    size = _BFLOAT16 if training.bf16 or training.fp16 else _FLOAT32
    info, inner = get_moe_model_info(config), getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    sparse, dense = info["moe_layers"], config.num_hidden_layers - info["moe_layers"]
    # Not every class of transformers has all of these fields.
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    visited = info["num_experts_per_tok"] * (getattr(config, "moe_intermediate_size", None) or inner) + shared
    ffn_widths = {"sparse": 2 * visited, "dense": 2 * inner}
    layer = {kind: 12 * config.hidden_size + width for kind, width in ffn_widths.items()}
    kept = sparse * layer["sparse"] + dense * layer["dense"]
    if training.gradient_checkpointing:
        kept = config.num_hidden_layers * config.hidden_size + max(layer.values())
    return size * kept


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, or in the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _device_name(training: TrainingArguments) -> str:
    device = training.device
    many = f"{training.world_size} x " if training.world_size > 1 else ""
    if device.type == "cuda":
        return many + torch.cuda.get_device_name(device)
    return f"{many}{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else many + device.type
