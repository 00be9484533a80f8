"""Builds the model of a run: fresh, upcycled from a dense model, or continued."""

import copy
from typing import Any

import datasets
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from moe_hf.base.errors import CheckpointError, ConfigError, reading
from moe_hf.base.model_source import find_model, without_progress_bar
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.config.presets import create_moe_config
from moe_hf.models.auto import FAMILIES, dense_model_types, family_of, family_of_dense, model_type_of
from moe_hf.models.found_routers import find_routers
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.routes import balance_hash_routers, freeze_routers
from moe_hf.models.upcycling.native import plan_native
from moe_hf.models.upcycling.native_config import choose_native
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, cannot_upcycle
from moe_hf.models.upcycling.opened import open_model, other_config
from moe_hf.training.data.prepare import TrainingData
from moe_hf.training.data.tokenizer_choice import vocabulary_rows
from moe_hf.training.runs.arguments import ModelArguments
from moe_hf.training.runs.settings import model_overrides

LONGEST_ANSWER = 256
"""New tokens that a saved model generates unless told otherwise."""

_VOCABULARY_MULTIPLE = 8
# Words that others take whole, and letters of two bytes.
_PROBE = "What is the name of the caf\u00e9 and of the color \u00f6?"


def model_config(arguments: ModelArguments, least_vocabulary: int | None = None) -> PreTrainedConfig:
    """The configuration that the arguments ask for, before any weight is made.

    Args:
        arguments: size or starting model, experts, overrides.
        least_vocabulary: rows that a fresh model's embedding has at least; None keeps the preset's.

    Raises:
        ConfigError: a value that the configuration does not allow, or a starting model that can't be read.
        CheckpointError: the starting model is no folder and can't be a Hub id, or is of another kind.
    """
    fields = _chosen_fields(arguments)
    start = arguments.model or arguments.upcycle
    if start is not None:
        config = _starting_config(arguments, fields)
        if not isinstance(config, MoEDecoderConfig):
            return config
    else:
        if least_vocabulary is not None:
            fields.setdefault("vocab_size", -(-least_vocabulary // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE)
        config = create_moe_config(arguments.moe_size, arguments.flash_attention, arguments.family, **fields)
    if arguments.is_dense:
        config.make_dense()
    return config


def adopt_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's special ids into the configuration.

    Raises:
        ConfigError: the tokenizer has more ids than the model has embeddings, or MegaByte would read other than bytes.
    """
    if isinstance(config, MegaByteWithMoEConfig):
        ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        if len(ids) != len(_PROBE.encode()):
            raise ConfigError(
                "MegaByte reads bytes, but this tokenizer makes other tokens; leave --tokenizer out, or give "
                "--tokenizer byte or a saved one that makes one id of each byte"
            )
    needed = vocabulary_rows(tokenizer)
    if needed > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has ids up to {needed - 1} but the model {config.vocab_size} embeddings; use the starting "
            "model's own tokenizer, or raise --vocab_size"
        )
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def build_model(arguments: ModelArguments, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with its first weights, in float32; fresh weights come from torch's current seed.

    Raises:
        CheckpointError: the starting model's weights don't fit or are damaged.
    """
    kwargs: dict[str, Any] = {"experts_implementation": arguments.experts_implementation}
    if not isinstance(config, MoEDecoderConfig) and get_moe_model_info(config)["moe_layers"]:
        # Models of this package take it by themselves.
        kwargs["experts_implementation"] = arguments.experts_implementation or "auto"
    attention = arguments.attn_implementation
    if attention is None and not arguments.flash_attention:
        attention = "eager"
    if attention is not None:
        kwargs["attn_implementation"] = attention
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    start = arguments.model or arguments.upcycle
    if start is not None:
        with reading(start):
            return _starting_weights(arguments, config, _chosen_fields(arguments), kwargs)
    causal_lm: Any = FAMILIES[config.model_type].causal_lm
    # What AutoModel.from_config calls: unlike the plain constructor it takes the backends.
    return causal_lm._from_config(config, **kwargs)


def prepare_routers(model: PreTrainedModel, arguments: ModelArguments, data: TrainingData) -> None:
    """Do to the routers what the arguments ask for: balance the hash, freeze the weights.

    Raises:
        ConfigError: a stream is to be counted, or there is nothing hash-routed.
    """
    if arguments.balanced_hash:
        if not isinstance(data.train, datasets.Dataset):
            raise ConfigError("--balanced_hash counts the data before training; it is not possible with --streaming")
        ids = data.train.data.column("input_ids").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        # Ids that the data never holds count, too: the table has a row for each.
        counts = torch.bincount(torch.from_numpy(ids.astype("int64")), minlength=model.config.vocab_size)
        balance_hash_routers(model, counts)
    if arguments.freeze_routers:
        freeze_routers(model)
        for router in find_routers(model).values():
            router.requires_grad_(False)


def set_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
    """Give the model the generation settings that are saved with it: special ids and a length of answers.

    What a starting model says of sampling and of ends of a turn stays. Many say how to sample and forget to say that
    they do, which transformers reads and does not write.

    Raises:
        ConfigError: it says something that transformers would refuse to save, after training.
    """
    config = copy.deepcopy(model.generation_config) or GenerationConfig()
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, model.config.pad_token_id
    if tokenizer.eos_token_id not in ends:
        config.eos_token_id = tokenizer.eos_token_id
    # Half of the context stays for the question.
    config.max_new_tokens = min(LONGEST_ANSWER, context_length // 2)
    if any(vars(config).get(name) is not None for name in ("temperature", "top_p", "top_k", "min_p", "typical_p")):
        config.do_sample = True if config.do_sample is None else config.do_sample
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the starting model's generation_config.json can't be saved again ({reason}); correct it"
        ) from error
    model.generation_config = config


def _chosen_fields(arguments: ModelArguments) -> dict[str, Any]:
    fields = {
        name: value
        for name in ("num_experts", "num_experts_per_tok", "router_type", "expert_init", "router_init")
        if (value := vars(arguments)[name]) is not None
    }
    for name, value in model_overrides(arguments.model_overrides).items():
        if name in fields:
            raise ConfigError(f"{name} is given twice: by its own flag and in --model_overrides; keep one")
        fields[name] = value
    return fields


def _starting_config(arguments: ModelArguments, fields: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of the model to train, before any weight is read.

    Args:
        arguments: with `model` or `upcycle`.
        fields: of the configuration, that the user chose.

    Raises:
        ConfigError: a field is not allowed, or nothing can be read.
        CheckpointError: there is no such model, or it can't be upcycled.
    """
    start = _name(arguments)
    # Of the models that this package writes none is old enough for a Hub id without an owner.
    source = find_model(start, needs_owner=arguments.model is not None)
    try:
        family = family_of(model_type_of(source))
        if family is not None:
            with reading(f"the configuration of {start}"):
                config: Any = family.config.from_pretrained(source.folder, **fields)
            _refuse_quantised(start, config)
            return config
        config = other_config(source)
    except OSError as error:
        raise ConfigError(f"no model can be read from {start!r}: {error}") from error
    if source.gguf_file is None:
        _refuse_quantised(start, config)
    if arguments.upcycle is not None and not arguments.is_dense:
        if config.model_type not in NATIVE_FORMATS:
            own = family_of_dense(config.model_type)
            if own is None:
                raise cannot_upcycle(start, config.model_type, dense_model_types())
            return own.config.from_pretrained(source.folder, **fields)
        return choose_native(config, **fields).config
    if fields:
        name, value = next(iter(fields.items()))
        raise ConfigError(f"{name}={value!r} can't be chosen for {start}, which is a {config.model_type} already")
    return config


def _refuse_quantised(name: str, config: PreTrainedConfig) -> None:
    """Codes do not learn, and transformers says so only once everything is loaded."""
    said = getattr(config, "quantization_config", None)
    if said:
        raise CheckpointError(
            f"{name} is quantised ({said.get('quant_method', 'some way')}), and its weights can't be trained; train "
            "the float model, or, in Python, an adapter on top of this one"
        )


def _starting_weights(
    arguments: ModelArguments, config: PreTrainedConfig, fields: dict[str, Any], options: dict[str, Any]
) -> PreTrainedModel:
    """The model with its first weights, in float32.

    Args:
        arguments: as in `_starting_config`.
        config: from there; special ids may have changed.
        fields: as in `_starting_config`.
        options: of `from_pretrained`: the implementations of attention and experts.

    Raises:
        CheckpointError: the weights don't fit or are damaged.
    """
    start = _name(arguments)
    source = find_model(start)
    # Whatever type the file has: --bf16 casts operations alone, and weights of bfloat16 would lose small steps.
    options = {**options, "config": config, "dtype": torch.float32}
    if isinstance(config, MoEDecoderConfig):
        causal_lm: Any = FAMILIES[config.model_type].causal_lm
        return causal_lm.from_pretrained(source.folder, **options)
    if arguments.upcycle is not None and not arguments.is_dense:
        plan = plan_native(open_model(start), **fields)
        # Each tensor is computed when transformers' loader asks for it.
        native: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return native.from_pretrained(None, state_dict=plan.state, **options)
    # With output_loading_info, two values: the model and what was missing or left over.
    model: Any
    report: Any
    with without_progress_bar():
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder, output_loading_info=True, **source.options, **options
        )
    # transformers only warns of them, and fills them with random numbers.
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{start} lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    return model


def _name(arguments: ModelArguments) -> str:
    name = arguments.model or arguments.upcycle
    assert name is not None
    return name
