"""What keeps routers balanced in any training, and its callback for any Trainer: states, and the global batch."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_hf.models.heads import MoEHeadModel
from moe_hf.models.native_routers import BiasUpkeep, NativeRouters
from moe_hf.models.router_losses import BalanceWindow
from moe_hf.models.router_states import RouterStates


class RouterUpkeep:
    """Moves the routers' states of a model and counts the experts of a whole step, from now until it is closed."""

    def __init__(self, head: MoEHeadModel) -> None:
        self._head, self._states = head, RouterStates(head)
        self._window = BalanceWindow() if head.config.router_balance_loss == "global_batch" else None
        head.balance_window = self._window
        if not self._states.needed:
            # Hooks that see nothing would still cut a compiled forward in pieces.
            self._states.close()

    def step(self) -> None:
        """Once before each optimizer step: move the states by what its micro-batches did, and count anew."""
        self._states.step()
        if self._window is not None:
            self._window.reset()

    def close(self) -> None:
        """Leave the model as it was."""
        self._states.close()
        self._head.balance_window = None


class RouterStateCallback(TrainerCallback):
    """Moves correction biases and thresholds once per optimizer step, and counts the experts of a whole step.

    For transformers' own Trainer (`callbacks=[RouterStateCallback()]`); `MoETrainer` has it built in. Without it,
    "sigmoid_bias" stays as unbalanced as it starts, "expert_choice" and "expert_threshold" keep choosing as at the
    start, and `router_balance_loss="global_batch"` spans the ranks but not the accumulated micro-batches.

    It moves the correction biases of transformers' own classes too (DeepSeek-V3 and those after it), which nothing else
    does.

    Args:
        bias_update_speed: of those classes, whose configurations have no such field; DeepSeek-V3's is 0.001.
    """

    def __init__(self, bias_update_speed: float = 0.001) -> None:
        self._bias_update_speed = bias_update_speed
        self._upkeep: RouterUpkeep | BiasUpkeep | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Begin to watch the model."""
        # A training that an error cut off never reached `on_train_end`, and left its hooks on the model.
        self._stop()
        if model is None:
            return
        head = next((module for module in model.modules() if isinstance(module, MoEHeadModel)), None)
        if head is not None:
            self._upkeep = RouterUpkeep(head)
        elif (routers := NativeRouters(model)).have_biases:
            self._upkeep = BiasUpkeep(model, routers, self._bias_update_speed)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the states by what the step's micro-batches did."""
        if self._upkeep is not None:
            self._upkeep.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop watching."""
        self._stop()

    def _stop(self) -> None:
        if self._upkeep is not None:
            self._upkeep.close()
        self._upkeep = None
