"""Finds what is wrong with the settings of a run before anything is read."""

import importlib.util
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SaveStrategy

from moe_hf.base.errors import BackendUnavailableError, ConfigError, did_you_mean
from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available
from moe_hf.config.architectures import architecture_config
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.rules import Conflict, check_conflicts, given_flags
from moe_hf.training.runs.arguments import ModelArguments, RunArguments
from moe_hf.training.training_arguments import MOE_MUON, MoETrainingArguments

ATTENTIONS = (
    "eager sdpa flex_attention flash_attention_2 flash_attention_3 flash_attention_4 topk_sparse topk_block".split()
)
EXPERTS = ["eager", "batched_mm", "grouped_mm", *EXPERTS_BACKENDS]


# Conflicts within one part alone stand beside it: in `arguments` and `training_arguments`.
CONFLICTS = (
    Conflict(
        lambda s: s.max_steps <= 0 and (s.num_train_epochs <= 0 or s.given.get("max_steps", -1) != -1),
        "{flags} trains nothing; give --max_steps 1 or more, or leave it out (or at -1) and give --num_train_epochs "
        "above 0",
        ("max_steps", "num_train_epochs"),
    ),
    Conflict(
        lambda s: s.given.get("model") and "moe_size" in s.given,
        "--moe_size {moe_size} sizes a fresh model, but --model {model} brings its own size",
    ),
    Conflict(
        lambda s: s.given.get("upcycle") and "moe_size" in s.given,
        "--moe_size {moe_size} sizes a fresh model, but --upcycle {upcycle} brings its own size",
    ),
    Conflict(
        lambda s: s.streaming and s.max_steps <= 0,
        "{flags}: a stream has no end that is known beforehand; give --max_steps 1 or more",
        ("streaming", "max_steps"),
    ),
    Conflict(
        lambda s: s.streaming and s.dataloader_num_workers > 0,
        "--streaming resumes exactly only with --dataloader_num_workers 0, got {dataloader_num_workers}",
    ),
    Conflict(
        lambda s: s.fsdp and s.world_size == 1,
        "{flags} shards a model over several processes, but there is {world_size}: start the run with torchrun, or "
        "leave it out",
        ("fsdp",),
    ),
    Conflict(
        lambda s: s.resume != "auto" and s.resume_from_checkpoint,
        "--resume {resume} and --resume_from_checkpoint {resume_from_checkpoint} say the same; give one of the two",
    ),
    Conflict(
        lambda s: s.metric_for_best_model and s.metric_for_best_model.removeprefix("eval_") != "loss",
        "--metric_for_best_model {metric_for_best_model}: evaluation measures the loss alone; give loss",
    ),
    Conflict(
        lambda s: s.metric_for_best_model is None and s.save_strategy == SaveStrategy.BEST,
        "--save_strategy {save_strategy} needs to know what is best: give --metric_for_best_model loss as well",
    ),
    Conflict(
        lambda s: s.label_names not in (None, ["labels"]),
        "--label_names {label_names}: the labels are called labels; leave it out",
    ),
    Conflict(
        lambda s: s.push_to_hub and not (s.hub_token or get_token()),
        "{flags} needs a token of the hub: log in with `hf auth login`, or give --hub_token",
        ("push_to_hub",),
    ),
)
# What a flag may say, for flags that become fields of other libraries.
_WORDS = {"attn_implementation": ATTENTIONS, "experts_implementation": EXPERTS}

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
    for name, allowed in _WORDS.items():
        word = values[name]
        if word is not None and word not in allowed:
            raise ConfigError(
                f"--{name} must be one of {', '.join(allowed)}, got {word!r}{did_you_mean(word, allowed)}"
            )
    # Called for its error alone.
    architecture_config(model.family)
    check_conflicts(SimpleNamespace(**values, given=given, world_size=training.world_size), CONFLICTS, given)
    if not run.allow_any_learning_rate:
        _check_rates(training)
    _check_reports(training)
    _check_optimizer(training, given)
    _check_schedule(training, given)
    _check_hub_name(training)


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
        # TrainingArguments has replaced "none" and "all" by lists of names before this is called.
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


def _check_optimizer(training: MoETrainingArguments, given: Mapping[str, Any]) -> None:
    optimizer = _word(training.optim)
    if optimizer == MOE_MUON:
        return
    try:
        # Asked for its errors alone, which would else come only after the data was read.
        Trainer.get_optimizer_cls_and_kwargs(training)
    except ImportError as error:
        raise BackendUnavailableError(f"--optim {optimizer}: {_one_line(error)}") from error
    except (ValueError, TypeError) as error:
        # These want the model as well, which is not there yet.
        if not optimizer.startswith(("galore", "apollo", "lomo", "adalomo")):
            flags = given_flags(("optim", "optim_args"), given)
            raise ConfigError(f"{flags} can't be used: {_one_line(error)}") from error


def _check_schedule(training: MoETrainingArguments, given: Mapping[str, Any]) -> None:
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
        flags = given_flags(("lr_scheduler_type", "lr_scheduler_kwargs"), given)
        raise ConfigError(f"{flags} can't be used: {_one_line(error)}") from error


def _check_hub_name(training: MoETrainingArguments) -> None:
    if training.push_to_hub and training.hub_model_id is not None:
        try:
            validate_repo_id(training.hub_model_id)
        except HFValidationError as error:
            raise ConfigError(f"--hub_model_id {training.hub_model_id!r}: {_one_line(error)}") from error


def _word(value: Any) -> str:
    """A member of an enumeration, or its word, as the word."""
    return str(getattr(value, "value", value))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
