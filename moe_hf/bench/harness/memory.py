"""Counts the bytes that a step keeps for its backward pass, and the most that it holds at once.

On a CPU every allocation that PyTorch makes is recorded by its profiler, so the numbers repeat exactly and owe nothing
to the C library's heap. What a GEMM library allocates for itself does not go through PyTorch and is not counted.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from moe_hf.bench.harness.timing import Step


class StepMemory(NamedTuple):
    """`peak`: the most bytes held at once beyond what was held before; `left`: those still held afterwards."""

    peak: int
    left: int


def saved_bytes(forward: Step, known: Iterable[torch.Tensor]) -> int:
    """Bytes that `forward` keeps alive for its backward pass, each storage counted once.

    Args:
        forward: runs with gradients; its result must be returned.
        known: tensors that live anyway (parameters, the input), which are not counted.
    """
    kept: dict[int, int] = {}
    anyway = {tensor.untyped_storage().data_ptr() for tensor in known}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in anyway:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Held until the count is done: a freed storage's address would be given out again.
        result = forward()
    total = sum(kept.values())
    del result
    return total


def step_memory(step: Step, device: torch.device) -> StepMemory:
    """The memory of one call, beyond what is held when it begins."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        peak, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return StepMemory(peak - before, after - before)
    held = peak = 0
    for change in _allocations(step):
        held += change
        peak = max(peak, held)
    return StepMemory(peak, held)


def quiet_profiler() -> None:
    """Keep PyTorch's profiler from writing its own log lines between ours; works until it is first used."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def _allocations(step: Step) -> list[int]:
    """Bytes of every allocation (> 0) and release (< 0) on the CPU, in order."""
    quiet_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as directory:
        # Only the exported trace holds the single allocations; the tables sum them up per operator.
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    changes.sort(key=lambda event: event["ts"])
    return [event["args"]["Bytes"] for event in changes]
