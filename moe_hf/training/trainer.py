"""The Trainer: transformers' own, with what it lacks to train experts and to survive any interruption."""

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.optim import decayed_names, moe_muon
from moe_hf.ops.routing.balance import divisor
from moe_hf.training.balance import RouterStateCallback
from moe_hf.training.checkpoint import (
    STATE_NAME,
    atomic_checkpoint,
    load_run_state,
    newest_valid_checkpoint,
    remove_leftovers,
    remove_old_checkpoints,
    require_valid_checkpoint,
    save_run_state,
)
from moe_hf.training.checkpoint_weights import load_as_saved, same_sizes_required
from moe_hf.training.data.stream_loader import StreamLoader, is_resumable_stream
from moe_hf.training.hub import SharesOnHub
from moe_hf.training.interrupt import InterruptRequest
from moe_hf.training.loss_terms import LossTerms
from moe_hf.training.metrics import append_metrics, keep_metrics_until, known_peak_flops
from moe_hf.training.processes import main_process_says
from moe_hf.training.training_arguments import MOE_MUON, MoETrainingArguments
from moe_hf.training.window import LoggingWindow


class _Moments(TrainerCallback):
    """Tells the trainer of moments for which transformers has events but no methods."""

    def __init__(self, trainer: "MoETrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.trainer.begin_window()

    def on_epoch_begin(self, *_: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.end_step(control)

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.end_epoch(control)


class MoETrainer(SharesOnHub):
    """transformers' Trainer, for any of its models, with the corrections that long and sparse runs need.

    - A checkpoint is written aside and appears complete or not at all; resuming accepts complete ones only.
    - A resumed run does exactly what the uninterrupted one would have done: weights, losses, data order, log lines.
      An iterable data set of unknown length with `state_dict` and `load_state_dict` goes on where it stood, without
      replaying (with `dataloader_num_workers=0`; otherwise transformers replays it). Such a stream is one epoch of
      `max_steps`: one that ends is begun again.
    - The first Ctrl-C saves a checkpoint after the current step and stops (`interrupted` is then True); the second
      aborts.
    - `optim="moe_muon"` (see `MoETrainingArguments`).
    - Routers' states and the counts of the global batch, as `RouterStateCallback` keeps them.
    - `push_to_hub`: whole checkpoints go to the Hub with a card and without pickles, and one that fails stops nothing
      (`SharesOnHub`).
    - `metrics.jsonl` in the output folder, with routing metrics per layer for models that return `router_logits`
      while training (see `append_metrics`), tokens per second, and MFU from the parameters that a token meets.

    Takes the arguments of `transformers.Trainer`; `args` is best a `MoETrainingArguments`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        smoothing = 0.0
        if self.label_smoother is not None and getattr(model, "loss_type", None) == "ForCausalLM":
            # Trainer's own keeps the labels from the model, and so its router losses; it shifts them by class names.
            self.label_smoother, smoothing = None, self.args.label_smoothing_factor
        self.interrupt = InterruptRequest()
        self._stream: StreamLoader | None = None
        self._run_state: dict[str, Any] = {}
        self._staging: str | None = None
        self._saved_step: int | None = None
        self._epoch_open, self._begun, self._begun_step = False, 0.0, 0
        # Seconds and summed loss of the steps before this call; None where the checkpoint does not tell.
        self._before: dict[str, float] | None = None
        self._loading_from: str | None = None
        self._window, self._terms = LoggingWindow(model), LossTerms(model, smoothing)
        self.add_callback(_Moments(self))
        if not any(isinstance(callback, RouterStateCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(RouterStateCallback())

    @property
    def interrupted(self) -> bool:
        """Whether the last `train` was stopped by Ctrl-C."""
        return self.interrupt.requested

    @property
    def timed_steps(self) -> int:
        """Steps that the closing line of `train` sums up: the whole run's, or this call's where no more is known."""
        return self.state.global_step - (0 if self._before is not None else self._begun_step)

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **kwargs: Any) -> TrainOutput:
        """Train, from the beginning or from a checkpoint; a run whose last step is in the checkpoint is only ended.

        Loss, time and speed of the closing line are those of all steps that led to the model (see `timed_steps`).

        Args:
            resume_from_checkpoint: a checkpoint folder, or True or "auto" for the newest complete one in `output_dir`.
            trial: of a hyperparameter search.
            **kwargs: `ignore_keys_for_eval`, as in Trainer.

        Raises:
            CheckpointError: the folder is no complete checkpoint, or there is none.
        """
        output_dir = self._get_output_dir(trial)
        if resume_from_checkpoint:
            named = None if resume_from_checkpoint in (True, "auto") else str(resume_from_checkpoint)
            resume_from_checkpoint = main_process_says(
                self.args,
                lambda: newest_valid_checkpoint(output_dir) if named is None else require_valid_checkpoint(named),
            )
            if resume_from_checkpoint is None:
                raise CheckpointError(f"no complete checkpoint in {output_dir!r}; start without resuming")
        if self.args.should_save:
            remove_leftovers(output_dir)
        self.accelerator.wait_for_everyone()
        with self.interrupt:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, trial=trial, **kwargs)

    # Data

    def get_train_dataloader(self) -> Any:
        """As in Trainer; for a stream that can say where it stands, a loader that reads nothing ahead."""
        self._stream = None
        if not is_resumable_stream(self.train_dataset) or self.args.dataloader_num_workers > 0:
            return super().get_train_dataloader()
        collate = self._get_collator_with_removed_columns(self.data_collator, description="Training")
        self._stream = StreamLoader(
            self.train_dataset, self._train_batch_size, collate, self.args.process_index, self.args.world_size
        )
        return self._stream

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epoch, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._run_state = load_run_state(resume_from_checkpoint) if resume_from_checkpoint else {}
        if self._stream is None or not resume_from_checkpoint:
            return epoch, batches
        if "stream" in self._run_state:
            self._stream.load_state_dict(self._run_state["stream"])
        else:
            self._stream.skip(batches)
        # The stream skips by itself: Trainer would replay all that was read.
        return 0, 0

    def _run_epoch(self, **kwargs: Any) -> None:
        """As in Trainer, which would train one step more where the checkpoint holds the last one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        if self._before is not None:
            # Trainer divides the summed loss by the steps since this one: here by those of the whole run.
            self._initial_global_step = 0
            start_time -= self._before["seconds"]
        return super()._finalize_training(trial, num_train_samples, start_time)

    # Optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in Trainer, but for what the model says must not decay."""
        return decayed_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in Trainer, and Muon for `optim="moe_muon"`.

        Raises:
            ConfigError: `moe_muon` with sharded parameters.
        """
        if self.args.optim != MOE_MUON or self.optimizer is not None:
            return super().create_optimizer(model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError("moe_muon needs whole matrices: not with FSDP or DeepSpeed; use adamw_torch_fused")
        args, model_to_train = self.args, self.model if model is None else model
        assert isinstance(args, MoETrainingArguments)
        assert isinstance(model_to_train, nn.Module)
        self.optimizer = moe_muon(
            model_to_train,
            learning_rate=args.learning_rate,
            muon_learning_rate=args.muon_learning_rate,
            weight_decay=args.weight_decay,
            decay_names=self.get_decay_parameter_names(model_to_train),
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )
        return self.optimizer

    # Metrics

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer; while training, with `LossTerms` (models of this package balance by themselves), and measured.

        `inputs` may have "answers", True at the labels that evaluation would count, which is not for the model.
        """
        answers, labels = inputs.pop("answers", None), inputs.get("labels")
        if num_items_in_batch is not None:
            # Any model divides its sum by this; a step without a target contributes 0, not 0 / 0.
            num_items_in_batch = divisor(num_items_in_batch)
        with self._terms.watching(inputs, model.training):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and isinstance(outputs, Mapping):
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            given = {**inputs, "labels": labels}
            loss, outputs = self._terms.added(loss, outputs, given, num_items_in_batch, processes)
            self._window.add_outputs(outputs, labels, answers, inputs.get("attention_mask"))
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; the loss of a batch without targets is NaN, which Trainer leaves out of the mean."""
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        num_targets = self._get_num_items_in_batch([inputs], self.args.device)
        if loss is not None and num_targets is not None:
            loss = torch.where(torch.as_tensor(num_targets, device=loss.device) > 0, loss, torch.nan)
        return (loss, *others)

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """FLOPs of training on a batch, from the parameters that a token meets; Trainer counts all experts."""
        tokens = inputs.get(self.model.main_input_name) if isinstance(self.model, PreTrainedModel) else None
        flops = None if tokens is None else self._window.add_batch(tokens, inputs.get("attention_mask"))
        return super().floating_point_ops(inputs) if flops is None else flops

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer, with routing and speed in training logs, and a line in `metrics.jsonl`."""
        details: dict[str, Any] = {}
        if "loss" in logs:
            measured, details = self._window.close(self._sums(), self.args.world_size, self._peak_flops())
            logs.update(measured)
        super().log(logs, start_time)
        if self.is_world_process_zero():
            append_metrics(str(self.args.output_dir), {"step": self.state.global_step, **logs, **details})

    def _sums(self) -> dict[str, torch.Tensor]:
        """What the meters of all processes counted in this window."""
        return {name: self.accelerator.reduce(sums, reduction="sum") for name, sums in self._window.sums().items()}

    def _peak_flops(self) -> float | None:
        if isinstance(self.args, MoETrainingArguments) and self.args.peak_flops:
            return self.args.peak_flops
        return known_peak_flops(self.args.device) if self.args.bf16 or self.args.fp16 else None

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._window.speed.pause():
            return super()._evaluate(*args, **kwargs)

    # Checkpoints

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        # The last step of an epoch is saved after what the epoch's end logs and evaluates: a run that is killed and
        # goes on from there would miss that.
        due, stops = self.control.should_save, self.control.should_training_stop or self.control.should_epoch_stop
        held_back = due and self._epoch_open and (stops or (self.state.epoch or 0.5) % 1 == 0)
        self.control.should_save = due and not held_back
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        self.control.should_save = self.control.should_save or held_back
        if self.control.should_training_stop and self.interrupted and self._saved_step != self.state.global_step:
            # Here and not by `control.should_save`, which the save strategy "best" overrules.
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else self._staging

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir, step = self._get_output_dir(trial), self.state.global_step
        final = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        with self._window.speed.pause():
            run_state = self._current_run_state()
            with atomic_checkpoint(run_dir, step, writer=self.args.should_save) as self._staging:
                try:
                    super()._save_checkpoint(model, trial)
                    staged = os.path.join(str(self._staging), os.path.basename(final))
                    if self.state.best_model_checkpoint == staged:
                        self.state.best_model_checkpoint = final
                finally:
                    self._staging = None
                if self.args.should_save:
                    self.state.save_to_json(os.path.join(staged, STATE_NAME))
                    if not self.args.save_only_model:
                        save_run_state(run_state, staged)
                # First every process's files, then the rename; and nobody goes on before that.
                self.accelerator.wait_for_everyone()
            self.accelerator.wait_for_everyone()
            self._saved_step = step
            if self.args.push_to_hub:
                self._push_from_checkpoint(final)
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                remove_old_checkpoints(run_dir, final, self.args.save_total_limit, best)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer would upload, in the background, a folder that is about to be renamed.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _current_run_state(self) -> dict[str, Any]:
        loss = self.accelerator.reduce(self._tr_loss.detach().clone(), reduction="mean")
        window = {"loss": loss.cpu(), "last_logged_step": self._globalstep_last_logged}
        window |= {name: sums.cpu() for name, sums in self._sums().items()}
        state: dict[str, Any] = {"window": window}
        if self._before is not None:
            seconds = self._before["seconds"] + time.time() - self._begun
            state["run"] = {"seconds": seconds, "loss": self._total_loss_scalar}
        if self._stream is not None:
            state["stream"] = self._stream.state_dict()
        return state

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._loading_from = resume_from_checkpoint
        with same_sizes_required(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._loading_from = self.state.best_model_checkpoint
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Load again by `from_pretrained` where the file's names differ from the model's; Trainer only warns."""
        model: Any = self.model
        if not load_as_saved(model, str(self._loading_from), load_result):
            super()._issue_warnings_after_load(load_result)

    # Steps

    def begin_window(self) -> None:
        """Called when training begins: take up the logging window that the checkpoint left open."""
        self._saved_step = None
        self._begun, self._begun_step = time.time(), self.state.global_step
        self._before = self._run_state.get("run") if self._begun_step else {"seconds": 0.0, "loss": 0.0}
        self._window.reset()
        if self.is_world_process_zero():
            keep_metrics_until(str(self.args.output_dir), self._begun_step, self.state.log_history)
        window = self._run_state.get("window")
        if window is None:
            return
        self._tr_loss = window["loss"].to(self.args.device)
        # These steps belong to the log line that comes next, but not to the mean loss of this call alone.
        self._total_loss_scalar = -self._tr_loss.item() if self._before is None else self._before["loss"]
        self._globalstep_last_logged = window["last_logged_step"]
        if self.is_world_process_zero():
            self._window.restore(window, self.args.device)

    def begin_epoch(self) -> None:
        """Called when an epoch begins."""
        self._epoch_open = True

    def end_epoch(self, control: TrainerControl) -> None:
        """Called when an epoch ends, also when it was cut off: what is due at its end is then not due."""
        self._epoch_open = False
        if self.interrupted:
            control.should_evaluate = control.should_save = False

    def end_step(self, control: TrainerControl) -> None:
        """Called after each optimizer step: stop when any process was interrupted."""
        if self._stream is not None:
            # Trainer counts from where this process began.
            self.state.epoch = self.state.global_step / self.state.max_steps
        if self.args.world_size > 1:
            flag = torch.tensor(float(self.interrupt.requested), device=self.args.device)
            self.interrupt.requested = self.accelerator.reduce(flag, reduction="sum").item() > 0
        if self.interrupt.requested:
            control.should_training_stop = True
