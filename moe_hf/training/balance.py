"""The callback that keeps routers balanced in any Trainer: their states, and the counts of the global batch."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_hf.models.heads import MoEHeadModel
from moe_hf.models.router_losses import BalanceWindow
from moe_hf.models.router_states import RouterStates


class RouterStateCallback(TrainerCallback):
    """Moves correction biases and thresholds once per optimizer step, and counts the experts of a whole step.

    For transformers' own Trainer (`callbacks=[RouterStateCallback()]`); `MoETrainer` has it built in. Without it,
    "sigmoid_bias" stays as unbalanced as it starts, "expert_choice" and "expert_threshold" keep choosing as at the
    start, and `router_balance_loss="global_batch"` spans the ranks but not the accumulated micro-batches.
    """

    def __init__(self) -> None:
        self._states: RouterStates | None = None
        self._window: BalanceWindow | None = None
        self._model: MoEHeadModel | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin to watch the model."""
        self._stop()
        head = next((module for module in model.modules() if isinstance(module, MoEHeadModel)), None) if model else None
        if head is None:
            return
        self._model = head
        self._states = RouterStates(head)
        if not self._states.needed:
            self._states.close()
            self._states = None
        if head.config.router_balance_loss == "global_batch":
            self._window = head.balance_window = BalanceWindow()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the states by what the step's micro-batches did."""
        if self._states is not None:
            self._states.step()
        if self._window is not None:
            self._window.reset()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        self._stop()

    def _stop(self) -> None:
        if self._states is not None:
            self._states.close()
        if self._model is not None:
            self._model.balance_window = None
        self._states = self._window = self._model = None
