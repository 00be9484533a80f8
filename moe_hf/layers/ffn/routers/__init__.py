"""The table of routers: how tokens and experts find each other."""

from moe_hf.base.registry import Registry
from moe_hf.layers.ffn.routers.base import LearnedRouter, LoadLearner, Router, RouterOutput
from moe_hf.layers.ffn.routers.expert_choice import ExpertChoiceRouter, ExpertThresholdRouter
from moe_hf.layers.ffn.routers.hashed import HashRouter
from moe_hf.layers.ffn.routers.sigmoid_bias import SigmoidBiasRouter
from moe_hf.layers.ffn.routers.top_k import SwitchRouter, TopKRouter

__all__ = [
    "ROUTERS",
    "ExpertChoiceRouter",
    "ExpertThresholdRouter",
    "HashRouter",
    "LearnedRouter",
    "LoadLearner",
    "Router",
    "RouterOutput",
    "SigmoidBiasRouter",
    "SwitchRouter",
    "TopKRouter",
]

ROUTERS: Registry[type[Router]] = Registry(
    "router_type",
    {
        "top_k": TopKRouter,
        "switch": SwitchRouter,
        "sigmoid_bias": SigmoidBiasRouter,
        "hash": HashRouter,
        "expert_choice": ExpertChoiceRouter,
        "expert_threshold": ExpertThresholdRouter,
    },
)
