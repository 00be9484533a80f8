"""Profiles router, layer, block and training step, operator by operator."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from moe_hf.base.files import atomic_file
from moe_hf.base.registry import Registry
from moe_hf.bench.harness.arms import TRAINING, Arm, Group, Options
from moe_hf.bench.harness.memory import quiet_profiler
from moe_hf.bench.speed.layer_cases import build_block, build_layer
from moe_hf.bench.speed.model_case import build_model
from moe_hf.bench.speed.profiles import Operator, Profile, kind_of
from moe_hf.bench.speed.router_case import build_routers
from moe_hf.bench.speed.sizes import Size

PARTS: Registry[Callable[[Size, str, Options], Group]] = Registry(
    "part",
    {"router": build_routers, "moe_layer": build_layer, "block": build_block, "train_step": build_model},
)
"""What can be profiled, and how its arms are made."""


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
            arms = {arm.name: arm for arm in PARTS[part](size, TRAINING, chosen).arms}
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
        # Kernels that still ran when the profiler stops would be missing.
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
