"""Who listens to a run hears of each event, once and in order."""

import inspect

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from moe_hf.training.runs.cpu_share import CpuShare, CpuTimes
from moe_hf.training.runs.listeners import ListenerCallback, Listeners, RunListener


def test_a_run_says_it_once(tmp_path) -> None:
    class Heard(RunListener):
        def __init__(self) -> None:
            self.notices: list[str] = []

        def noticed(self, text: str) -> None:
            self.notices.append(text)

    class Plan:
        num_steps, tokens_per_step = 10, 8

    heard = Heard()
    callback = ListenerCallback(heard, Plan())
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    state, control = TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    times = [CpuTimes(20.0 * i, 2.0 * i, 40.0 * i, 40.0 * i) for i in range(1, 9)]
    callback._cpu_share = CpuShare(threads=1, read=iter(times).__next__)
    for step in range(1, 4):
        state.global_step = step
        callback.on_step_end(args, state, control)
    assert heard.notices == [
        "the machine is busy: other programs take its cores, and alone this run would be about 10 times as fast"
    ]


EVENTS = {name: method for name, method in vars(RunListener).items() if not name.startswith("_")}


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_reaches_all_listeners_in_their_order(event) -> None:
    heard = []

    class Listener(RunListener):
        def __init__(self, number):
            self.number = number

    def hear(self, *what):
        heard.append((self.number, *what))

    setattr(Listener, event, hear)
    what = tuple(range(len(inspect.signature(EVENTS[event]).parameters) - 1))
    getattr(Listeners([Listener(1), RunListener(), Listener(2)]), event)(*what)
    assert heard == [(1, *what), (2, *what)]


def test_parts_of_a_step_and_evaluations_are_told_but_for_the_last(tmp_path) -> None:
    class Heard(RunListener):
        def __init__(self) -> None:
            self.steps, self.losses = [], []

        def progressed(self, progress):
            self.steps.append((progress.step, progress.loss, progress.seconds_left is None))

        def evaluated(self, step, loss):
            self.losses.append((step, loss))

    class Plan:
        num_steps, tokens_per_step = 2, 8

    heard = Heard()
    callback = ListenerCallback(heard, Plan())
    args = TrainingArguments(str(tmp_path), use_cpu=True, gradient_accumulation_steps=2)
    state, control = TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    for step in (1, 2):
        callback.on_substep_end(args, state, control)
        state.global_step = step
        callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs={"loss": 3.0, "cross_entropy": 2.5 / step})
        callback.on_evaluate(args, state, control, metrics={"eval_loss": 1.0 * step})
    assert [step for step, _, _ in heard.steps] == [0.5, 1, 1.5, 2]
    assert [loss for _, loss, _ in heard.steps] == [None, None, 2.5, 2.5]
    # The first mark says no speed yet.
    assert heard.steps[0][2]
    assert not heard.steps[1][2]
    assert heard.losses == [(1, 1.0)]
    assert (callback.train_loss, callback.latest("nothing")) == (1.25, None)
    assert callback.tokens_per_second > 0
