"""Calls a trainer at moments for which transformers' Trainer has events but no methods."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class HasMoments(Protocol):
    """What is called, and when."""

    def begin_window(self) -> None:
        """Training begins; a checkpoint is loaded if one was given."""

    def begin_epoch(self) -> None:
        """An epoch begins."""

    def end_step(self, control: TrainerControl) -> None:
        """An optimizer step is done."""

    def end_epoch(self, control: TrainerControl) -> None:
        """An epoch is over, or was cut off."""


class MomentsCallback(TrainerCallback):
    """Passes the Trainer's events on to the trainer itself."""

    def __init__(self, trainer: HasMoments) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `begin_window`."""
        self.trainer.begin_window()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `begin_epoch`."""
        self.trainer.begin_epoch()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call `end_step`."""
        self.trainer.end_step(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `end_epoch`."""
        self.trainer.end_epoch(control)
