"""Finds what is wrong with the settings of a run before anything is read."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SaveStrategy

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available
from moe_hf.base.registry import did_you_mean
from moe_hf.config.architectures import architecture_config
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS
from moe_hf.training.runs.arguments import DataArguments, ModelArguments, RunArguments
from moe_hf.training.training_arguments import MOE_MUON, MoETrainingArguments

ATTENTIONS = (
    "eager sdpa flex_attention flash_attention_2 flash_attention_3 flash_attention_4 topk_sparse topk_block".split()
)
EXPERTS = ["eager", "batched_mm", "grouped_mm", *EXPERTS_BACKENDS]


class _Range(NamedTuple):
    """Numbers that a flag takes; `below` and `above` are themselves not allowed."""

    least: float = 0
    most: float = math.inf
    below: float = math.inf
    above: float = -math.inf

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {self.least:g}"
        high = f" and below {self.below:g}" if self.below < math.inf else ""
        return low + (f" and at most {self.most:.0f}" if self.most < math.inf else high)


_POSITIVE, _SHARE, _SEED = _Range(above=0), _Range(below=1), _Range(most=2**32 - 1)
_RANGES = {
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "eval_fraction"), _SHARE),
    "prompt_loss_fraction": _Range(most=1),
    **dict.fromkeys(("logging_steps", "save_steps", "eval_steps"), _POSITIVE),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon"), _Range()),
    **dict.fromkeys(("eval_delay", "dataloader_num_workers", "questions_per_skill", "save_total_limit"), _Range()),
    **dict.fromkeys(
        (
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_conversations "
            "eval_documents shuffle_buffer vocab_size eval_accumulation_steps "
            "dataloader_prefetch_factor torch_empty_cache_steps"
        ).split(),
        _Range(1),
    ),
    "context_length": _Range(2),
}

_OTHER_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit"}

# Far above what anyone trains with: beyond it the first steps destroy the weights. By the head of the optimizer's name.
_LARGEST_RATES = {
    "sgd": 10.0,
    "schedule_free_sgd": 10.0,
    "lomo": 10.0,
    "adagrad": 1.0,
    "lion": 0.01,
    "paged_lion": 0.01,
}
_LARGEST_RATE, _LARGEST_MUON_RATE = 0.1, 0.5


def check_settings(
    model: ModelArguments,
    data: DataArguments,
    run: RunArguments,
    training: MoETrainingArguments,
    given: Mapping[str, Any],
) -> None:
    """Nothing, if a run can begin with these settings.

    Args:
        model, data, run, training: all settings.
        given: what the user chose, by flag name.

    Raises:
        ConfigError: a value is not allowed, or values exclude each other.
        BackendUnavailableError: a package that is asked for is absent.
    """
    values = {**vars(model), **vars(data), **vars(run), **vars(training)}
    _check_numbers(values, given)
    _check_words(values)
    _check_together(model, data, run, training, given)
    if not run.allow_any_learning_rate:
        _check_rates(training)
    _check_reports(training)
    _check_optimizer(training)
    _check_schedule(training)
    _check_best_model(training)
    _check_hub(training)


def _check_numbers(values: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value) and (name in given or name in _RANGES):
            raise ConfigError(f"--{name} must be a finite number, got {value}")
        allowed = _RANGES.get(name)
        if allowed is not None and isinstance(value, (int, float)) and not allowed.holds(value):
            raise ConfigError(f"--{name} must be {allowed}, got {value}")
    steps, epochs = values["max_steps"], values["num_train_epochs"]
    if steps <= 0 and (epochs <= 0 or given.get("max_steps", -1) != -1):
        raise ConfigError(
            f"--max_steps {steps} with --num_train_epochs {epochs} trains nothing; give --max_steps 1 or more, or "
            "leave it out (or at -1) and give --num_train_epochs above 0"
        )


def _check_words(values: Mapping[str, Any]) -> None:
    for name, allowed in (("attn_implementation", ATTENTIONS), ("experts_implementation", EXPERTS)):
        word = values[name]
        if word is not None and word not in allowed:
            raise ConfigError(
                f"--{name} must be one of {', '.join(allowed)}, got {word!r}{did_you_mean(word, allowed)}"
            )
    for name in ("data", "text_column", "messages_column", "data_split"):
        if not values[name] or (isinstance(values[name], list) and "" in values[name]):
            raise ConfigError(f"--{name} must not be empty; leave it out for its default")


def _check_together(
    model: ModelArguments,
    data: DataArguments,
    run: RunArguments,
    training: MoETrainingArguments,
    given: Mapping[str, Any],
) -> None:
    if model.model and model.upcycle:
        raise ConfigError("--model continues a saved model and --upcycle starts from a dense one; give one of the two")
    for source in ("model", "upcycle"):
        if given.get(source) and "moe_size" in given:
            raise ConfigError(f"--moe_size {model.moe_size} sizes a fresh model, but --{source} brings its own size")
    if model.model and (
        model.architecture != "moe"
        or model.dense_twin
        or model.num_experts
        or model.router_type
        or model.model_overrides
    ):
        raise ConfigError(
            "--model keeps its shape: drop --architecture, --dense_twin, --num_experts, --router_type and "
            "--model_overrides"
        )
    if model.upcycle and model.architecture not in ("moe", "dense"):
        raise ConfigError(f"--upcycle brings its own architecture: drop --architecture {model.architecture}")
    architecture_config(model.family)
    if not model.upcycle and (model.expert_init or model.router_init):
        raise ConfigError("--expert_init and --router_init say how --upcycle DIR makes experts; give --upcycle as well")
    if data.text_column == data.messages_column:
        raise ConfigError(f"--text_column and --messages_column are both {data.text_column!r}; a column holds one kind")
    if data.streaming and training.max_steps <= 0:
        raise ConfigError("--streaming has no end that is known beforehand: give --max_steps as well")
    if data.streaming and training.dataloader_num_workers > 0:
        raise ConfigError("--streaming resumes exactly only with --dataloader_num_workers 0")
    if data.streaming and data.packing == "none":
        raise ConfigError("--packing none needs the whole data; with --streaming use document_mask or eos")
    if training.fsdp and training.world_size == 1:
        raise ConfigError("--fsdp shards a model over several processes: start the run with torchrun, or leave it out")
    if run.resume != "auto" and training.resume_from_checkpoint:
        raise ConfigError("--resume and --resume_from_checkpoint say the same; give one of the two")


def _check_rates(training: MoETrainingArguments) -> None:
    optimizer = _word(training.optim)
    most = next((rate for head, rate in _LARGEST_RATES.items() if optimizer.startswith(head)), _LARGEST_RATE)
    rates = [("learning_rate", training.learning_rate, most, optimizer)]
    if optimizer == MOE_MUON:
        rates = [
            ("learning_rate", training.learning_rate, most, "the AdamW part of moe_muon"),
            ("muon_learning_rate", training.muon_learning_rate, _LARGEST_MUON_RATE, "the Muon part of moe_muon"),
        ]
    for name, rate, largest, whose in rates:
        if rate > largest:
            raise ConfigError(
                f"--{name} {rate:g} is far above what {whose} can learn with (at most {largest:g}), so the run would "
                "be lost in its first steps; lower it, or insist with --allow_any_learning_rate"
            )


def _check_reports(training: MoETrainingArguments) -> None:
    for name in training.report_to or []:
        allowed = ["none", "all", *INTEGRATION_TO_CALLBACK]
        if name not in allowed[2:]:
            raise ConfigError(
                f"--report_to must be among {', '.join(allowed)}, got {name!r}{did_you_mean(name, allowed)}"
            )
        package = _OTHER_PACKAGES.get(name, name)
        known = name in OPTIONAL_PACKAGES
        if not (is_available(name) if known else importlib.util.find_spec(package)):
            install = OPTIONAL_PACKAGES[name].install if known else f"pip install {package}"
            raise BackendUnavailableError(
                f"--report_to {name} needs the package {package}, which is not installed; {install}"
            )


def _check_optimizer(training: MoETrainingArguments) -> None:
    optimizer = _word(training.optim)
    if optimizer == MOE_MUON:
        return
    try:
        Trainer.get_optimizer_cls_and_kwargs(training)
    except ImportError as error:
        raise BackendUnavailableError(f"--optim {optimizer}: {_one_line(error)}") from error
    except (ValueError, TypeError) as error:
        # These want the model as well, which is not there yet.
        if not optimizer.startswith(("galore", "apollo", "lomo", "adalomo")):
            raise ConfigError(f"--optim {optimizer} can't be used: {_one_line(error)}") from error


def _check_schedule(training: MoETrainingArguments) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
    steps, kwargs = max(2, training.max_steps), training.lr_scheduler_kwargs
    try:
        get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=training.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=kwargs if isinstance(kwargs, dict) else None,
        )
    # What is missing or too much shows as an error of any kind.
    except Exception as error:
        raise ConfigError(
            f"--lr_scheduler_type {_word(training.lr_scheduler_type)} with --lr_scheduler_kwargs "
            f"{kwargs or {}} can't be used: {_one_line(error)}"
        ) from error


def _check_best_model(training: MoETrainingArguments) -> None:
    metric = training.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") != "loss":
        raise ConfigError(f"--metric_for_best_model {metric}: evaluation measures the loss alone; give loss")
    if metric is None and training.save_strategy == SaveStrategy.BEST:
        raise ConfigError("--save_strategy best needs to know what is best: give --metric_for_best_model loss")
    if training.label_names not in (None, ["labels"]):
        raise ConfigError(f"--label_names {' '.join(training.label_names)}: the labels are called labels; leave it out")


def _check_hub(training: MoETrainingArguments) -> None:
    if not training.push_to_hub:
        return
    if training.hub_model_id is not None:
        try:
            validate_repo_id(training.hub_model_id)
        except HFValidationError as error:
            raise ConfigError(f"--hub_model_id {training.hub_model_id!r}: {_one_line(error)}") from error
    if not (training.hub_token or get_token()):
        raise ConfigError("--push_to_hub needs a token of the hub: log in with `hf auth login`, or give --hub_token")


def _word(value: Any) -> str:
    """A member of an enumeration, or its word, as the word."""
    return str(getattr(value, "value", value))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
