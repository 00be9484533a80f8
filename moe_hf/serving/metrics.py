"""Counts what a server does, in the text format that Prometheus reads."""

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from moe_hf.base.registry import Registry


class Sample(NamedTuple):
    """One number of a metric, with the labels that tell it from the others."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Metric(NamedTuple):
    """A metric's kind (`counter` only grows, `gauge` goes up and down) and its meaning."""

    kind: str
    help: str


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "moe_hf_requests_total": Metric("counter", "Requests answered, by path and HTTP status."),
        "moe_hf_requests_running": Metric("gauge", "Requests that came and whose answer is not finished."),
        "moe_hf_generating": Metric("gauge", "Answers whose tokens are being generated; the others wait for a turn."),
        "moe_hf_requests_abandoned_total": Metric("counter", "Requests whose client hung up before the answer's end."),
        "moe_hf_prompt_tokens_total": Metric("counter", "Tokens of prompts that were read."),
        "moe_hf_completion_tokens_total": Metric("counter", "Tokens that were generated."),
        "moe_hf_generation_seconds_total": Metric("counter", "Wall time in which at least one answer was generated."),
        "moe_hf_tokens_per_second": Metric("gauge", "Generated tokens per second of that time, since the start."),
        "moe_hf_expert_tokens_total": Metric("counter", "Tokens that an expert took, by decoder layer."),
    },
)


class Meter:
    """The numbers of one server; any thread may count."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._sources: list[Callable[[], Iterable[Sample]]] = []

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a metric of the table `METRICS`."""
        _ = METRICS[name]
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def collect_from(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Asks `source` for more numbers whenever they are wanted."""
        self._sources.append(source)

    def value(self, name: str, **labels: str) -> float:
        """What was counted so far."""
        with self._lock:
            return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def text(self) -> str:
        """All numbers, as Prometheus reads them."""
        with self._lock:
            samples = [Sample(name, labels, value) for (name, labels), value in self._values.items()]
        samples += [sample for source in self._sources for sample in source()]
        samples += _speeds(samples)
        lines = []
        for name, metric in METRICS.items():
            lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
            found = sorted(sample for sample in samples if sample.name == name)
            lines += [f"{name}{_braced(sample.labels)} {_number(sample.value)}" for sample in found]
        return "\n".join(lines) + "\n"


def _speeds(samples: list[Sample]) -> list[Sample]:
    seconds = {sample.labels: sample.value for sample in samples if sample.name == "moe_hf_generation_seconds_total"}
    return [
        Sample("moe_hf_tokens_per_second", sample.labels, round(sample.value / seconds[sample.labels], 3))
        for sample in samples
        if sample.name == "moe_hf_completion_tokens_total" and seconds.get(sample.labels)
    ]


def _braced(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
