"""The table of what can be measured."""

from collections.abc import Callable
from typing import NamedTuple

from moe_hf.base.registry import Registry
from moe_hf.bench.speed.arms import FORWARD, TRAINING, Group, Options
from moe_hf.bench.speed.experts_case import build_experts
from moe_hf.bench.speed.layer_cases import build_block, build_layer
from moe_hf.bench.speed.model_case import GENERATE, build_model
from moe_hf.bench.speed.router_case import build_routers
from moe_hf.bench.speed.sizes import Size

DECODE = "decode"
DECODE_TOKENS = (1, 8)
"""Tokens of the decode mode, which is a forward pass without gradients of that many tokens."""


class Case(NamedTuple):
    """Something to measure: how its arms are made, in which modes, and what it is, in a line."""

    build: Callable[[Size, str, Options], Group]
    modes: tuple[str, ...]
    meaning: str


CASES: Registry[Case] = Registry(
    "bench case",
    {
        "router": Case(build_routers, (FORWARD, TRAINING), "the routers alone, every router_type"),
        "experts": Case(build_experts, (FORWARD, TRAINING, DECODE), "the experts alone, routing given, every backend"),
        "layer": Case(build_layer, (FORWARD, TRAINING, DECODE), "router and experts, every backend"),
        "block": Case(build_block, (FORWARD, TRAINING), "norms, attention, router and experts, every backend"),
        "model": Case(build_model, (TRAINING, GENERATE), "a training step with AdamW, and generation, 4 layers"),
    },
)
MODES = (FORWARD, TRAINING, DECODE, GENERATE)
