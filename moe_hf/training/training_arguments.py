"""The flags of a training run: all of transformers' TrainingArguments, with this project's defaults and additions."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import IntervalStrategy, TrainingArguments
from transformers.training_args import OptimizerNames

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.training.rules import Range, check_ranges

MOE_MUON = "moe_muon"
"""Value of `--optim` that stands for `moe_hf.models.optim.MoEMuon`."""

TRAINING_RANGES = {
    **dict.fromkeys(("seed", "data_seed"), Range(most=2**32 - 1)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Range(below=1)),
    **dict.fromkeys(("muon_learning_rate", "peak_flops", "logging_steps", "save_steps", "eval_steps"), Range(above=0)),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "adam_epsilon"), Range()),
    # At infinity nothing is clipped, and the norm is still logged.
    "max_grad_norm": Range(infinite=True),
    "dataloader_num_workers": Range(),
    # transformers takes them below zero too: no delay, no end by epochs.
    **dict.fromkeys(("eval_delay", "neftune_noise_alpha", "num_train_epochs"), Range(least=-math.inf)),
    **dict.fromkeys(
        (
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
            "eval_accumulation_steps dataloader_prefetch_factor torch_empty_cache_steps"
        ).split(),
        Range(1),
    ),
}
# Each counts under one of the strategies alone, and may hold anything under the others.
_STEPS = {"logging_steps": "logging_strategy", "save_steps": "save_strategy", "eval_steps": "eval_strategy"}


@dataclass
class MoETrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, every flag of which keeps its meaning, and a few of our own.

    Defaults that differ: `logging_steps` 25, `report_to` "none", `save_total_limit` 2, `data_seed` = `seed` (so that
    the data order does not depend on what drew random numbers before), and `optim` is fused AdamW on every device.

    Attributes:
        optim: any name that transformers knows, or "moe_muon": Muon for hidden matrices and experts, AdamW for the
            rest.
        muon_learning_rate: of the Muon part; `learning_rate` is that of the AdamW part. Both follow the schedule.
        peak_flops: the most floating-point operations per second that one device can do in the precision of the run;
            the MFU is reported only where it is given or the device is a known one.

    Raises:
        ConfigError: a value of a flag is not allowed, or flags exclude each other.
    """

    optim: str = field(
        default="adamw_torch_fused",
        metadata={"help": "The optimizer: moe_muon, or a name of transformers such as adamw_torch_fused or adafactor."},
    )
    muon_learning_rate: float = field(
        default=0.02, metadata={"help": "With --optim moe_muon: learning rate of hidden matrices and experts."}
    )
    peak_flops: float | None = field(
        default=None, metadata={"help": "Peak FLOP/s of one device, for the MFU; known for common NVIDIA GPUs."}
    )
    logging_steps: float = field(
        default=25, metadata={"help": "Log every so many optimizer steps; below 1 it is a share of all steps."}
    )
    # HfArgumentParser reads the second of the types: None has to stand first.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "Where else to log: none, all, tensorboard, wandb, trackio, ..."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Keep so many of the newest checkpoints; all of them at 0 or below."}
    )

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the hub's token, since transformers pickles arguments into what it shares."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self) -> None:
        """Checks all values; transformers' own errors become ConfigErrors of the same text."""
        optimizer = str(getattr(self.optim, "value", self.optim))
        allowed = [MOE_MUON, *(name.value for name in OptimizerNames)]
        if optimizer not in allowed:
            raise ConfigError(
                f"optim {optimizer!r} is unknown{did_you_mean(optimizer, allowed)}; allowed: {', '.join(allowed)}"
            )
        # transformers would let the error of JSON through, which does not say what flag it is about.
        for name in self._VALID_DICT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("{"):
                try:
                    json.loads(value)
                except ValueError as error:
                    raise ConfigError(f"{name} must be JSON, got {value!r} ({error})") from error
        if self.data_seed is None:
            self.data_seed = self.seed
        # transformers turns `optim` into a member of a closed enumeration; ours steps aside meanwhile.
        self.optim = "adamw_torch" if optimizer == MOE_MUON else optimizer
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        idle = {steps for steps, strategy in _STEPS.items() if getattr(self, strategy) != IntervalStrategy.STEPS}
        check_ranges({name: value for name, value in vars(self).items() if name not in idle}, TRAINING_RANGES)
        if optimizer == MOE_MUON:
            self.optim = MOE_MUON
