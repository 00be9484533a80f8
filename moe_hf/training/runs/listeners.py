"""What a training run tells whoever watches it, and the callback that tells it."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moe_hf.text.scoreboard import Scoreboard
from moe_hf.training.runs.cpu_share import CpuShare


class RunPlan(NamedTuple):
    """What is about to be trained.

    `info` is `get_moe_model_info`'s dictionary, `sparse_layers` has the numbers of the layers with experts. Bytes are
    estimates, but `train_state_bytes`, which is exact for AdamW
    in float32. `memory_bytes` is the memory of the device that trains, free at this moment. `checkpoint` is where an
    interrupted run is taken up.
    """

    title: str
    info: dict[str, Any]
    sparse_layers: tuple[int, ...]
    data: str
    device: str
    output_dir: Path
    checkpoint: str | None
    num_steps: int
    tokens_per_step: int
    num_documents: int | None
    tokens_per_pass: int | None
    train_state_bytes: int
    activation_bytes: int
    memory_bytes: int

    @property
    def total_tokens(self) -> int:
        """Tokens that the whole run trains on; packed blocks count whole, unpacked rows without their padding."""
        return self.num_steps * self.tokens_per_step

    @property
    def passes(self) -> float | None:
        """How often the run reads all of the data; None for a stream."""
        return self.total_tokens / self.tokens_per_pass if self.tokens_per_pass else None

    @property
    def fits(self) -> bool:
        """Whether the estimated need stays below the free memory."""
        return self.train_state_bytes + self.activation_bytes < self.memory_bytes


class Progress(NamedTuple):
    """Where training stands. Values that are not measured yet are None.

    `step` counts finished optimizer steps and, as a fraction, the micro-batches of the next. `balance` is the
    load-balance loss (1.0 = perfect), `seconds` the time since training began, `seconds_left` a guess from the latest
    steps.
    """

    step: float
    num_steps: int
    loss: float | None
    tokens_per_second: float | None
    balance: float | None
    seconds: float
    seconds_left: float | None


class TrainingReport(NamedTuple):
    """What a run came to.

    `tried` is True for a dry run, whose `whole_seconds` is how long the run would take.
    `finished` is False when it was stopped early; it can then be continued. `interrupted` says that Ctrl-C stopped it.
    `model_dir` holds the model: the run's folder, or the newest checkpoint of a stopped run (None if there is none).
    `seconds` are those of the last `timed_steps` steps: of all, unless the run goes on from a checkpoint that does not
    tell its time. Losses are mean cross-entropies in nats per label. `peak_memory_bytes` is the process's, or the
    accelerator's where one is used.
    """

    plan: RunPlan
    tried: bool = False
    whole_seconds: float | None = None
    finished: bool = False
    interrupted: bool = False
    model_dir: Path | None = None
    steps: int = 0
    timed_steps: int = 0
    seconds: float = 0.0
    train_loss: float | None = None
    eval_loss: float | None = None
    tokens_per_second: float | None = None
    trained_tokens: int = 0
    peak_memory_bytes: int = 0
    scoreboard: Scoreboard | None = None
    notices: tuple[str, ...] = ()


class RunListener:
    """Hears of a run's events; a base whose methods do nothing."""

    def noticed(self, text: str) -> None:
        """Something that the user should know: what was cut, resumed or left out."""

    def working(self, what: str) -> None:
        """A part of the work begins that has no progress of its own, such as "reading the data"."""

    def planned(self, plan: RunPlan) -> None:
        """Model and data are ready; training begins."""

    def progressed(self, progress: Progress) -> None:
        """A step, or a micro-batch of one, is done. Called for every one, so return quickly."""

    def evaluated(self, step: int, loss: float) -> None:
        """The model was evaluated in the midst of training; `loss` is the held-out cross-entropy."""

    def trained(self) -> None:
        """The last step is done."""

    def ended(self, report: TrainingReport) -> None:
        """The run is over and everything is written."""

    def failed(self) -> None:
        """An error or a second Ctrl-C cuts the run off; nothing follows."""


def _to_all(event: Callable[..., None]) -> Callable[..., None]:
    """The method that tells an event to each of several listeners, in their order."""

    @wraps(event)
    def tell(self: "Listeners", *what: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event.__name__)(*what)

    return tell


class Listeners(RunListener):
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[RunListener]) -> None:
        self.listeners = tuple(listeners)

    noticed = _to_all(RunListener.noticed)
    working = _to_all(RunListener.working)
    planned = _to_all(RunListener.planned)
    progressed = _to_all(RunListener.progressed)
    evaluated = _to_all(RunListener.evaluated)
    trained = _to_all(RunListener.trained)
    ended = _to_all(RunListener.ended)
    failed = _to_all(RunListener.failed)


class ListenerCallback(TrainerCallback):
    """Passes the Trainer's steps and logs on to a listener.

    Args:
        listener: who is told.
        plan: gives the number of steps and the tokens of each.
    """

    def __init__(self, listener: RunListener, plan: RunPlan) -> None:
        self.listener = listener
        self.plan = plan
        self.seconds_per_step: float | None = None
        self._logs: dict[str, float] = {}
        self._begun = time.perf_counter()
        self._marks: list[tuple[float, float]] = []
        self._micro_batches = 0
        self._cpu_share: CpuShare | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the latest steps, in tokens as the plan counts them; None before the first."""
        return self.plan.tokens_per_step / self.seconds_per_step if self.seconds_per_step else None

    @property
    def train_loss(self) -> float | None:
        """The cross-entropy of the latest logging window; the whole loss where that is not measured."""
        return self._logs.get("cross_entropy", self._logs.get("loss"))

    def latest(self, name: str) -> float | None:
        """The last logged value of a metric."""
        return self._logs.get(name)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()
        self._marks = []
        self._cpu_share = CpuShare() if args.device.type == "cpu" else None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the latest value of everything logged."""
        self._logs |= logs or {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell of it, unless it is the evaluation after the last step, which the report has."""
        # Time spent on evaluating is not training time.
        self._marks = []
        loss = (metrics or {}).get("eval_loss")
        if loss is not None and state.global_step < self.plan.num_steps:
            self.listener.evaluated(state.global_step, loss)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a micro-batch that does not complete a step, and tell of it."""
        self._micro_batches += 1
        self._tell(state.global_step + min(self._micro_batches / args.gradient_accumulation_steps, 0.99))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell of it."""
        self._micro_batches = 0
        self._tell(state.global_step)

    def _tell(self, step: float) -> None:
        now = time.perf_counter()
        self._marks.append((step, now))
        self._look_for_others()
        # The speed of the latest steps, without the first after a pause, in which much is done once.
        del self._marks[:-50]
        first_step, first_time = self._marks[0]
        if step > first_step:
            self.seconds_per_step = (now - first_time) / (step - first_step)
        left = self.plan.num_steps - step
        progress = Progress(
            step=step,
            num_steps=self.plan.num_steps,
            loss=self.train_loss,
            tokens_per_second=self.tokens_per_second,
            balance=self.latest("aux_loss"),
            seconds=now - self._begun,
            seconds_left=None if self.seconds_per_step is None else self.seconds_per_step * left,
        )
        self.listener.progressed(progress)

    def _look_for_others(self) -> None:
        slowdown = None if self._cpu_share is None else self._cpu_share.slowdown()
        if slowdown is None:
            return
        # Once is enough.
        self._cpu_share = None
        self.listener.noticed(
            f"the machine is busy: other programs take its cores, and alone this run would be about {slowdown:.0f} "
            "times as fast"
        )
