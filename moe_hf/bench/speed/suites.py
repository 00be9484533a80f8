"""The two suites whose tables stand in docs/performance.md: which groups they measure.

The sizes are tokens x width x expert width, experts E and experts per token k, each with its rows per expert.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from moe_hf.base.registry import Registry
from moe_hf.bench.speed.arms import FORWARD, TRAINING
from moe_hf.bench.speed.cases import CASES, DECODE
from moe_hf.bench.speed.goals import CPU_GOALS, GPU_GOALS, SMALL_WIDTHS, Goal
from moe_hf.bench.speed.growth_case import GROWTH, build_growth
from moe_hf.bench.speed.opponents import GPU_SUBJECT, PACKED, SUBJECT, TRANSFORMERS_BACKENDS
from moe_hf.bench.speed.runner import Job
from moe_hf.bench.speed.sizes import Size

# Rows per expert: 1024, 512, 256 and 64.
NARROW = Size(4096, 256, 1024, 8, 2)
WIDE = Size(2048, 768, 3072, 8, 2)
WIDEST = Size(2048, 1024, 4096, 16, 2)
FEW_ROWS = Size(512, 1024, 4096, 16, 2)
# A quarter of the first, for a first look.
SMALL = Size(1024, 256, 1024, 8, 2)
GROWING = Size(2048, 512, 1024, 8, 2)

_MODES = (FORWARD, TRAINING)
_CPU_ARMS = (*TRANSFORMERS_BACKENDS, SUBJECT, PACKED)


def _jobs(case: str, mode: str, sizes: Iterable[Size], arms: tuple[str, ...], memory: bool = False) -> list[Job]:
    return [Job(CASES[case].build, size, mode, memory, arms, case) for size in sizes]


def _vary(sizes: Iterable[Size], threads: Iterable[int], **fields: Any) -> list[Size]:
    return [size._replace(threads=number, **fields) for size in sizes for number in threads]


def cpu_jobs(quick: bool) -> list[Job]:
    """The groups behind every row of the CPU table; `quick` takes one cheap size instead of four, and one thread."""
    both = (1,) if quick else (1, 2)
    all_sizes = [SMALL] if quick else [NARROW, WIDE, WIDEST, FEW_ROWS]
    # With one thread a training step of the widest takes 7 s in transformers' eager loop; two threads show the same.
    train_1 = [SMALL] if quick else [NARROW, WIDE, FEW_ROWS]
    train_2 = [] if quick else [NARROW, WIDE, WIDEST, FEW_ROWS]
    decode = [Size(tokens, 1024, 4096, 16, 2, threads=both[-1]) for tokens in (1, 8)]
    model = Size(1024 if quick else 2048, 256, 1024, 8, 2, activation="gelu_new")
    new_sizes = [SMALL] if quick else [NARROW, WIDE]
    training = _vary(train_1, (1,)) + _vary(train_2, (2,))
    training_new = _vary(new_sizes[:1], both, activation="gelu_new")
    training_new += _vary(new_sizes[1:], both[1:], activation="gelu_new")
    small = _vary(SMALL_WIDTHS, both)
    compared = (*TRANSFORMERS_BACKENDS, SUBJECT)
    return [
        *_jobs("experts", FORWARD, _vary(all_sizes, both), _CPU_ARMS),
        *_jobs("experts", FORWARD, _vary(new_sizes, both, activation="gelu_new"), _CPU_ARMS),
        *_jobs("experts", FORWARD, small, _CPU_ARMS),
        *_jobs("experts", TRAINING, small, compared),
        *_jobs("experts", DECODE, decode, _CPU_ARMS),
        *_jobs("experts", TRAINING, training[:1] + training_new[:1], compared, memory=True),
        *_jobs("experts", TRAINING, training[1:] + training_new[1:], compared),
        *_jobs("experts", FORWARD, [size._replace(dtype="bfloat16") for size in training], _CPU_ARMS),
        *_jobs("experts", TRAINING, [size._replace(dtype="bfloat16") for size in training], compared),
        *[Job(build_growth, GROWING, mode, True, ("grouped_mm", SUBJECT), GROWTH) for mode in _MODES],
        *_jobs("model", TRAINING, _vary([model], both), ("eager", "grouped_mm", SUBJECT)),
    ]


def gpu_jobs(quick: bool) -> list[Job]:
    """The groups behind every row of the GPU table, in bfloat16; `quick` takes one size."""
    sizes = [
        Size(8192, 768, 3072, 8, 2),
        Size(16384, 768, 1024, 32, 2),
        Size(8192, 1024, 4096, 16, 2),
        Size(16384, 1536, 1024, 64, 4),
        Size(16384, 2048, 2048, 64, 1),
    ]
    sizes = [size._replace(dtype="bfloat16") for size in (sizes[:1] if quick else sizes)]
    decode = [Size(tokens, 1024, 4096, 16, 2, dtype="bfloat16") for tokens in (1, 8, 16)]
    growing = Size(16384, 1024, 1024, 8, 2, dtype="bfloat16")
    arms = (*TRANSFORMERS_BACKENDS, GPU_SUBJECT, "scattermoe")
    return [
        *_jobs("experts", FORWARD, sizes, arms, memory=True),
        *_jobs("experts", TRAINING, sizes, arms, memory=True),
        *[Job(build_growth, growing, mode, True, ("grouped_mm", GPU_SUBJECT), GROWTH) for mode in _MODES],
        *_jobs("experts", DECODE, decode, arms),
        *_jobs("router", FORWARD, [Size(tokens, 1024, 1024, 128, 8, dtype="bfloat16") for tokens in (1, 16384)], ()),
    ]


class Suite(NamedTuple):
    """A named set of groups, and the table that they fill."""

    jobs: Callable[[bool], list[Job]]
    goals: tuple[Goal, ...]
    device: str
    meaning: str


SUITES: Registry[Suite] = Registry(
    "bench suite",
    {
        "cpu": Suite(cpu_jobs, CPU_GOALS, "cpu", "the CPU table of docs/performance.md, 1 and 2 threads"),
        "gpu": Suite(gpu_jobs, GPU_GOALS, "cuda", "the GPU table of docs/performance.md, bfloat16"),
    },
)


def utilization_sizes(suite: str | None, sizes: Iterable[Size]) -> list[Size]:
    """The sizes whose utilisation a report draws: those measured, or three capacity factors for a suite."""
    if suite is None:
        return [size for size in sizes if size.tokens >= size.num_experts]
    return [SMALL._replace(capacity_factor=factor) for factor in (None, 1.0, 1.25)]
