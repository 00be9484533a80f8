"""The tables of what `moe-hf bench` can measure of experts: single cases, and the suites of docs/performance.md.

The sizes are tokens x width x expert width, experts E and experts per token k, each with its rows per expert.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from moe_hf.base.registry import Registry
from moe_hf.bench.harness.arms import DECODE, FORWARD, GENERATE, TRAINING, Group, Options
from moe_hf.bench.harness.cases import Case
from moe_hf.bench.harness.suite import Further, Suite
from moe_hf.bench.speed.experts_case import EXPERTS, EXPERTS_CPU_GOALS, EXPERTS_GPU_GOALS, build_experts
from moe_hf.bench.speed.growth import GROWTH, MANY
from moe_hf.bench.speed.growth_case import GROWTH_CPU_GOALS, GROWTH_GPU_GOALS, build_growth
from moe_hf.bench.speed.layer_cases import build_block, build_layer
from moe_hf.bench.speed.model_case import (
    FINE_STEP,
    MODEL,
    MODEL_GOALS,
    STEP,
    STEP_GOALS,
    TINY_STEP,
    build_model,
    build_step,
)
from moe_hf.bench.speed.opponents import GPU_SUBJECT, PACKED, QUANTISED, SUBJECT, TRANSFORMERS_BACKENDS
from moe_hf.bench.speed.report import SPEED_PAGE, UTILIZATION
from moe_hf.bench.speed.router_case import ROUTER, build_routers
from moe_hf.bench.speed.sizes import SMALL_WIDTHS, Size
from moe_hf.bench.speed.utilization import measure_utilization

MODES = (FORWARD, TRAINING, DECODE, GENERATE)
DECODE_TOKENS = (1, 8)
"""Tokens of the decode mode, which is a forward pass without gradients of that many tokens."""


class Kind(NamedTuple):
    """A kind of case: how its arms are made, in which modes, and what it is, in a line."""

    build: Callable[[Size, str, Options], Group]
    modes: tuple[str, ...]
    meaning: str


CASES: Registry[Kind] = Registry(
    "bench case",
    {
        ROUTER: Kind(build_routers, (FORWARD, TRAINING), "the routers alone, every router_type"),
        EXPERTS: Kind(build_experts, (FORWARD, TRAINING, DECODE), "the experts alone, routing given, every backend"),
        "layer": Kind(build_layer, (FORWARD, TRAINING, DECODE), "router and experts, every backend"),
        "block": Kind(build_block, (FORWARD, TRAINING), "norms, attention, router and experts, every backend"),
        MODEL: Kind(build_model, (TRAINING, GENERATE), "a training step with AdamW, and generation, 4 layers"),
        STEP: Kind(build_step, (TRAINING, GENERATE), "the tiny recipe's training step with Muon, and generation"),
    },
)


def case_of(name: str, size: Size, mode: str, **fields: Any) -> Case:
    """A case of that name in `CASES`; `fields` are further ones of `Case`."""
    return Case(name, mode, size, partial(CASES[name].build, size, mode), **fields)


def sizes_of_mode(sizes: Iterable[Size], mode: str) -> list[Size]:
    """The sizes with the numbers of tokens that belong to the mode, each once."""
    if mode == DECODE:
        sizes = [size._replace(tokens=tokens) for size in sizes for tokens in DECODE_TOKENS]
    elif mode == GENERATE:
        # Here tokens count the sequences that are continued at once.
        sizes = [size._replace(tokens=1) for size in sizes]
    return list(dict.fromkeys(sizes))


# Rows per expert: 1024, 512, 256 and 64. With few rows reading weights decides, with many the multiplication does.
NARROW = Size(4096, 256, 1024, 8, 2)
WIDE = Size(2048, 768, 3072, 8, 2)
WIDEST = Size(2048, 1024, 4096, 16, 2)
FEW_ROWS = Size(512, 1024, 4096, 16, 2)
# A quarter of the first, for a first look.
SMALL = Size(1024, 256, 1024, 8, 2)
GROWING = Size(2048, 512, 1024, MANY, 2)

_CPU_ARMS = (*TRANSFORMERS_BACKENDS, SUBJECT, PACKED)


def _cases(name: str, mode: str, sizes: Iterable[Size], arms: tuple[str, ...], memory: bool = False) -> list[Case]:
    return [case_of(name, size, mode, memory=memory, backends=arms) for size in sizes]


def _growth(size: Size, subject: str) -> list[Case]:
    arms = ("grouped_mm", subject)
    return [
        Case(GROWTH, mode, size, partial(build_growth, size, mode), memory=True, backends=arms)
        for mode in (FORWARD, TRAINING)
    ]


def _vary(sizes: Iterable[Size], threads: Iterable[int], **fields: Any) -> list[Size]:
    return [size._replace(threads=number, **fields) for size in sizes for number in threads]


def cpu_cases(quick: bool) -> list[Case]:
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
        *_cases(EXPERTS, FORWARD, _vary(all_sizes, both), _CPU_ARMS),
        *_cases(EXPERTS, FORWARD, _vary(new_sizes, both, activation="gelu_new"), _CPU_ARMS),
        *_cases(EXPERTS, FORWARD, small, _CPU_ARMS),
        *_cases(EXPERTS, TRAINING, small, compared),
        *_cases(EXPERTS, DECODE, decode, (*_CPU_ARMS, *QUANTISED)),
        *_cases(EXPERTS, TRAINING, training[:1] + training_new[:1], compared, memory=True),
        *_cases(EXPERTS, TRAINING, training[1:] + training_new[1:], compared),
        *_cases(EXPERTS, FORWARD, [size._replace(dtype="bfloat16") for size in training], _CPU_ARMS),
        *_cases(EXPERTS, TRAINING, [size._replace(dtype="bfloat16") for size in training], compared),
        *_growth(GROWING, SUBJECT),
        *_cases(MODEL, TRAINING, _vary([model], both), ("eager", "grouped_mm", SUBJECT)),
        *(case_of(STEP, size, TRAINING) for size in _vary([TINY_STEP, FINE_STEP], both)),
    ]


def gpu_cases(quick: bool) -> list[Case]:
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
    arms = (*TRANSFORMERS_BACKENDS, GPU_SUBJECT, "scattermoe")
    return [
        *_cases(EXPERTS, FORWARD, sizes, arms, memory=True),
        *_cases(EXPERTS, TRAINING, sizes, arms, memory=True),
        *_growth(Size(16384, 1024, 1024, MANY, 2, dtype="bfloat16"), GPU_SUBJECT),
        *_cases(EXPERTS, DECODE, decode, arms),
        *_cases(ROUTER, FORWARD, [Size(tokens, 1024, 1024, 128, 8, dtype="bfloat16") for tokens in (1, 16384)], ()),
    ]


def used_experts(sizes: Iterable[Size]) -> Further:
    """What a report of experts holds besides its groups: how routers use the experts of those sizes."""

    def further(
        quick: bool, options: Options, whole: bool, on_progress: Callable[[str], None]
    ) -> Iterator[tuple[str, Any]]:
        if whole:
            yield UTILIZATION, measure_utilization(sizes, options)

    return further


CPU_GOALS = (*EXPERTS_CPU_GOALS, *MODEL_GOALS, *STEP_GOALS, *GROWTH_CPU_GOALS)
GPU_GOALS = (*EXPERTS_GPU_GOALS, *GROWTH_GPU_GOALS)
_FURTHER = used_experts([SMALL._replace(capacity_factor=factor) for factor in (None, 1.0, 1.25)])

SPEED_SUITES: dict[str, Suite] = {
    "cpu": Suite(
        "the CPU table of docs/performance.md, 1 and 2 threads",
        "cpu",
        cpu_cases,
        SPEED_PAGE,
        CPU_GOALS,
        further=_FURTHER,
    ),
    "gpu": Suite(
        "the GPU table of docs/performance.md, bfloat16", "cuda", gpu_cases, SPEED_PAGE, GPU_GOALS, further=_FURTHER
    ),
}
