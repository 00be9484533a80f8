"""Says where experts that are copies of one dense FFN do not compute what it did, and what to change.

Komatsuzaki et al. 2023, Sparse Upcycling: every expert starts as the dense FFN, so the function is kept exactly as
long as the weights of a token's experts sum to 1.
"""

from transformers.utils import logging

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers import ROUTERS, LearnedRouter, SigmoidBiasRouter, SwitchRouter

logger = logging.get_logger(__name__)


def warn_if_logits_change(config: MoEDecoderConfig) -> None:
    """Warn where experts that are copies will not give the dense model's logits."""
    reasons = why_logits_change(config)
    if reasons:
        logger.warning_once(
            "the upcycled model will not give the dense model's logits at step 0, since the weights of a token's "
            f"experts do not sum to 1: {'; '.join(reasons)}"
        )


def why_logits_change(config: MoEDecoderConfig) -> list[str]:
    """Why the weights of a token's experts do not sum to 1, and what to change; empty where they do.

    Experts that are copies keep the dense model's logits exactly where it is empty.
    """
    reasons = []
    for kind in dict.fromkeys(config.router_of_sparse_layer):
        router = ROUTERS[kind]
        # Softmax over all experts sums to 1 by itself.
        whole = router.score == "softmax" and config.num_experts_per_tok == config.num_experts
        if issubclass(router, SwitchRouter):
            if not whole:
                reasons.append('router_type="switch" weighs its expert by a probability; "top_k" keeps the logits')
        elif issubclass(router, LearnedRouter) and not config.norm_topk_prob and not whole:
            reasons.append("norm_topk_prob=False leaves the weights as they are; True keeps the logits")
        if issubclass(router, SigmoidBiasRouter) and config.router_scale != 1:
            reasons.append(f"router_scale={config.router_scale} multiplies the weights; 1.0 keeps the logits")
    return reasons
