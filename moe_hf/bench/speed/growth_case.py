"""How cost grows with the number of experts: the same experts case with few and with many, measured together."""

from typing import Any

from moe_hf.bench.harness.arms import FORWARD, GEMM, ROOF, TRAINING, Group, Options
from moe_hf.bench.harness.cases import TEMPORARY, Goal
from moe_hf.bench.speed.experts_case import build_experts
from moe_hf.bench.speed.growth import FEW, GROWTH, MANY, at
from moe_hf.bench.speed.opponents import GPU_SUBJECT, SUBJECT
from moe_hf.bench.speed.sizes import Size


def build_growth(size: Size, mode: str, options: Options) -> Group:
    """Every backend with 8 and with 64 experts as arms of one group; `size.num_experts` is not looked at."""
    arms, skipped = [], []
    # In one group, so that both numbers of experts meet the same load of the machine.
    for num_experts in (FEW, MANY):
        group = build_experts(size._replace(num_experts=num_experts), mode, options)
        arms += [
            arm._replace(name=at(arm.name, num_experts), further=None)
            for arm in group.arms
            if arm.family not in (GEMM, ROOF)
        ]
        skipped += [one._replace(name=at(one.name, num_experts)) for one in group.skipped]
    return Group(arms, skipped)


def _goal(quantity: str, mode: str, must: float, backend: str, **fields: Any) -> Goal:
    return Goal(quantity, must, at(backend, MANY), at(backend, FEW), higher=False, case=GROWTH, mode=mode, **fields)


GROWTH_CPU_GOALS: tuple[Goal, ...] = (
    _goal("growth: forward E 64 / E 8", FORWARD, 1.3, SUBJECT),
    _goal("growth: forward+backward E 64 / E 8", TRAINING, 2.0, SUBJECT),
    _goal("growth: temporaries without returned gradients", TRAINING, 1.2, SUBJECT, of=TEMPORARY),
)
GROWTH_GPU_GOALS: tuple[Goal, ...] = (
    _goal("growth: forward E 64 / E 8", FORWARD, 1.3, GPU_SUBJECT),
    _goal("growth: forward+backward E 64 / E 8", TRAINING, 1.3, GPU_SUBJECT),
)
