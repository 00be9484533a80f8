"""Works out, before the first step, how long a run is and how much memory it needs."""

import math
from pathlib import Path

import psutil
import torch
from transformers import TrainingArguments

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.models.info import get_moe_model_info
from moe_hf.training.data.prepare import TrainingData
from moe_hf.training.runs.listeners import RunPlan

_FLOAT32, _BFLOAT16 = 4, 2
_TRIED_FLOPS = 2e12


def make_plan(
    title: str,
    config: MoEDecoderConfig,
    data: TrainingData,
    data_name: str,
    context_length: int,
    training: TrainingArguments,
    output_dir: Path,
) -> RunPlan:
    """The plan of a run whose model and data are known; the model need not be built."""
    rows = rows_per_step(training)
    return RunPlan(
        title=title,
        info=get_moe_model_info(config),
        sparse_layers=_sparse_layers(config),
        data=data_name,
        device=_device_name(training),
        output_dir=output_dir,
        checkpoint=None,
        num_steps=num_training_steps(data, training, rows),
        tokens_per_step=rows * context_length,
        num_documents=data.num_documents,
        tokens_per_pass=data.num_tokens,
        train_state_bytes=get_moe_model_info(config)["train_state_bytes"],
        activation_bytes=activation_bytes(config, training.per_device_train_batch_size * context_length, training),
        memory_bytes=free_memory(training.device),
    )


def rows_per_step(training: TrainingArguments) -> int:
    """Rows that all processes together read for one optimizer step."""
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def num_training_steps(data: TrainingData, training: TrainingArguments, rows_per_step: int) -> int:
    """Optimizer steps of the whole run, counted as the Trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    # A stream has no length; parsing has made sure that max_steps is given for it.
    return math.ceil(training.num_train_epochs * max(1, math.ceil(len(data.train) / rows_per_step)))  # type: ignore[arg-type]


def rows_to_try(plan: RunPlan, training: TrainingArguments, context_length: int) -> int:
    """Rows of the one micro-batch that a dry run tries: all on an accelerator, on a CPU what takes some seconds."""
    rows = training.per_device_train_batch_size
    if training.device.type != "cpu":
        return rows
    flops_per_row = 3 * plan.info["flops_per_token"] * context_length
    return max(1, min(rows, int(_TRIED_FLOPS / flops_per_row)))


def activation_bytes(config: MoEDecoderConfig, tokens: int, training: TrainingArguments) -> int:
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


def _kept_by_layers(config: MoEDecoderConfig, training: TrainingArguments) -> int:
    """Bytes that the layers of a decoder keep of one place."""
    size = _BFLOAT16 if training.bf16 or training.fp16 else _FLOAT32
    sparse, dense = len(config.sparse_layers), config.num_hidden_layers - len(config.sparse_layers)
    visited = config.num_experts_per_tok * (config.moe_intermediate_size or 0) + config.shared_expert_intermediate_size
    ffn_widths = {"sparse": 2 * visited, "dense": 2 * (config.intermediate_size or 0)}
    layer = {kind: 12 * config.hidden_size + width for kind, width in ffn_widths.items()}
    kept = sparse * layer["sparse"] + dense * layer["dense"]
    if training.gradient_checkpointing:
        kept = config.num_hidden_layers * config.hidden_size + max(layer.values())
    return size * kept


def _sparse_layers(config: MoEDecoderConfig) -> tuple[int, ...]:
    """Numbers of the layers with experts; those of MegaByte's local decoder are counted on from its global one's."""
    layers = tuple(config.sparse_layers)
    if isinstance(config, MegaByteWithMoEConfig):
        layers += tuple(config.num_hidden_layers + i for i in config.local_decoder_config.sparse_layers)
    return layers


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
