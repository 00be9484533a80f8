"""A trainer hears of the moments for which transformers has events but no methods."""

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from moe_hf.training.moments import MomentsCallback


class Trainer:
    """Writes down what is called."""

    def __init__(self):
        self.heard = []

    def begin_window(self):
        self.heard.append("begin_window")

    def begin_epoch(self):
        self.heard.append("begin_epoch")

    def end_step(self, control):
        self.heard.append(("end_step", control))

    def end_epoch(self, control):
        self.heard.append(("end_epoch", control))


def test_each_moment_of_training_is_told_in_order_with_the_control_that_it_may_change(tmp_path) -> None:
    trainer, control = Trainer(), TrainerControl()
    handler = CallbackHandler([MomentsCallback(trainer)], None, None, None, None)
    args, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState()
    handler.on_train_begin(args, state, control)
    handler.on_epoch_begin(args, state, control)
    for _ in range(2):
        handler.on_step_begin(args, state, control)
        handler.on_step_end(args, state, control)
    handler.on_epoch_end(args, state, control)
    handler.on_train_end(args, state, control)
    steps = [("end_step", control)] * 2
    assert trainer.heard == ["begin_window", "begin_epoch", *steps, ("end_epoch", control)]
