"""What sparse attention costs a small trained model."""

import math

from moe_hf.bench.mixers.attention_arms import FULL, TOPK
from moe_hf.bench.mixers.perplexity import Schooling, perplexities


def test_perplexities_are_of_one_model_with_every_kind_of_attention() -> None:
    found = perplexities(Schooling(steps=1, batch_size=1, heldout=1))
    assert {FULL, TOPK} <= set(found)
    assert all(1 < value < 2048 and math.isfinite(value) for value in found.values())
    assert abs(found[TOPK] / found[FULL] - 1) < 0.05
