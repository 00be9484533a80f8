"""Profiles router, layer, block and training step, and sorts every operator into a kind of work.

A share is of the operators' own time, so the shares of one profile add up to 1.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from moe_hf.base.files import atomic_file
from moe_hf.base.registry import Registry
from moe_hf.bench.harness.arms import TRAINING, Arm, Group, Options
from moe_hf.bench.harness.memory import quiet_profiler
from moe_hf.bench.speed.layer_cases import build_block, build_layer
from moe_hf.bench.speed.model_case import build_model
from moe_hf.bench.speed.router_case import build_routers
from moe_hf.bench.speed.sizes import Size

KINDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("optimizer", "adam", "clip_grad", "foreach", "multi_tensor", "linalg_vector_norm"),
    "attention": ("scaled_dot_product", "attention", "flash", "fmha"),
    "loss": ("log_softmax", "logsoftmax", "nll_loss", "cross_entropy"),
    "gemm": (
        *("mm", "gemm", "linear", "matmul", "addmv", "aten::mv", "aten::dot", "nvjet", "cutlass", "xmma"),
        # This package's Triton kernels that multiply.
        *("_up_kernel", "_rows_kernel", "_hidden_gradient_kernel", "_weight_gradient_kernel"),
    ),
    "activation": ("gelu", "silu", "relu", "tanh", "sigmoid", "threshold_backward", "pow"),
    "norms": ("layer_norm", "rms_norm"),
    "index": (
        *("index", "gather", "scatter", "sort", "topk", "bincount", "nonzero", "where", "unique", "embedding", "histc"),
        *("cumsum", "one_hot", "searchsorted", "repeat_interleave", "argmax"),
        *("_count_kernel", "_place_kernel", "_tile_map_kernel", "_combine_kernel", "_route"),
    ),
    "copies": ("copy", "contiguous", "clone", "cat", "fill", "zero", "empty", "resize", "stack", "memcpy", "memset"),
    "elementwise": ("mul", "add", "sub", "div", "neg", "sum", "mean", "softmax", "exp", "clamp", "elementwise"),
}
"""What the name of an operator, or of a kernel on a GPU, must contain to be of a kind; the first that fits counts."""
GLUE, REST = "glue", "rest"
"""`glue` is Python between operators and autograd's own bookkeeping; `rest` is what is left, mostly views."""

# Autograd's nodes, and functions written in Python: their own time is what they do between operators.
_GLUE = re.compile(r"^autograd::|Backward\d*$|^_?[A-Z]\w*$")


class Operator(NamedTuple):
    """One operator of a profile: calls and own milliseconds, over all profiled steps."""

    name: str
    kind: str
    calls: int
    milliseconds: float


class Profile(NamedTuple):
    """Where the time of one arm goes: operators by own time, longest first."""

    part: str
    mode: str
    arm: str
    size: Size
    steps: int
    operators: list[Operator]
    table: str
    trace: str | None = None

    @property
    def milliseconds(self) -> float:
        """Own time of all operators per step; profiling itself makes it longer than an unprofiled step."""
        return sum(operator.milliseconds for operator in self.operators) / self.steps

    @property
    def shares(self) -> dict[str, float]:
        """Share of each kind of work, the largest first; they add up to 1."""
        total = sum(operator.milliseconds for operator in self.operators) or 1.0
        sums = dict.fromkeys([*KINDS, GLUE, REST], 0.0)
        for operator in self.operators:
            sums[operator.kind] += operator.milliseconds
        return {kind: sums[kind] / total for kind in sorted(sums, key=sums.__getitem__, reverse=True)}

    def share_of(self, operator: Operator) -> float:
        """The share of one operator."""
        return operator.milliseconds / (self.steps * self.milliseconds or 1.0)


class Part(NamedTuple):
    """Something to profile: how its arms are made, and the name of its report."""

    build: Callable[[Size, str, Options], Group]
    report: str


PARTS: Registry[Part] = Registry(
    "part",
    {
        "router": Part(build_routers, "router_profiling_report"),
        "moe_layer": Part(build_layer, "moe_layer_profiling_report"),
        "block": Part(build_block, "block_profiling_report"),
        "train_step": Part(build_model, "train_step_profiling_report"),
    },
)


def kind_of(name: str) -> str:
    """The kind of work that an operator of that name does.

    >>> [kind_of(name) for name in ("aten::addmm", "aten::gelu_backward", "aten::index_select", "MulBackward0")]
    ['gemm', 'activation', 'index', 'glue']
    """
    if _GLUE.search(name):
        return GLUE
    word = name.lower()
    return next((kind for kind, words in KINDS.items() if any(part in word for part in words)), REST)


def default_profiles(
    size: Size,
    options: Options,
    backend: str,
    against: str,
    steps: int,
    traces: Path | None,
    parts: tuple[str, ...] = tuple(PARTS),
    on_part: Callable[[str], None] = lambda part: None,
) -> dict[str, list[Profile]]:
    """Profiles of the parts in training mode, each with a backend and with the one that it is held against.

    An arm is profiled after two steps to warm up; one that cannot run here is left out.

    Args:
        size: sizes, threads and `router_type`, which is the router that is profiled alone.
        options: device and seed; its backends are replaced by the two.
        backend, against: names of experts backends.
        steps: profiled steps per arm.
        traces: folder for one Chrome trace per arm; None writes none.
        parts: keys of `PARTS`.
        on_part: called with each part before it is profiled.
    """
    chosen = options._replace(backends=(backend, against))
    profiles = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(size.threads)
    try:
        for part in parts:
            on_part(part)
            arms = {arm.name: arm for arm in PARTS[part].build(size, TRAINING, chosen).arms}
            names = dict.fromkeys([size.router_type] if part == "router" else [backend, against])
            profiles[part] = [_profile(part, arms[name], size, chosen, steps, traces) for name in names if name in arms]
    finally:
        torch.set_num_threads(threads)
    return profiles


def _profile(part: str, arm: Arm, size: Size, options: Options, steps: int, traces: Path | None) -> Profile:
    for _ in range(2):
        arm.step()
    quiet_profiler()
    cuda = options.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            arm.step()
        if cuda:
            torch.cuda.synchronize(options.device)
    averages = profiler.key_averages()
    if cuda:
        # Kernels only: the operators that launch them carry the same time once more.
        rows = [row for row in averages if row.device_type == DeviceType.CUDA and not row.is_user_annotation]
        times = [row.self_device_time_total for row in rows]
    else:
        rows = list(averages)
        times = [row.self_cpu_time_total for row in rows]
    # Microseconds.
    operators = [
        Operator(row.key, kind_of(row.key), row.count, time / 1e3)
        for row, time in zip(rows, times, strict=True)
        if time > 0
    ]
    operators.sort(key=lambda operator: operator.milliseconds, reverse=True)
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=15, max_name_column_width=50)
    trace = None
    if traces is not None:
        trace = f"trace_{part}_{arm.name.replace(' ', '_').replace(',', '')}.json"
        with atomic_file(traces / trace) as aside:
            profiler.export_chrome_trace(str(aside))
    return Profile(part, TRAINING, arm.name, size, steps, operators, table, trace)
