"""Attention by itself, without projections: torch's, and the two sparse forms.

Shapes: B batch, H heads of 64 channels, S queries, N keys.
"""

import torch
from torch.nn import functional as F

from moe_hf.bench.harness.arms import Arm
from moe_hf.layers.attention.sparse import DEFAULT_BLOCK_SIZE, DEFAULT_TOPK, DEFAULT_TOPK_BLOCKS
from moe_hf.ops.attention.block_attention import topk_block_attention
from moe_hf.ops.attention.topk_attention import topk_sparse_attention

SDPA, EXACT, BLOCK = "sdpa", "topk_sparse", "topk_block"
FULL, TOPK = "all keys", "top-k of 64 keys"
"""What a trained model is let look at, in the table of perplexities."""
_HEAD_WIDTH = 64


def attention_arms(queries: int, keys: int, width: int) -> list[Arm]:
    """All keys, the 64 of the largest logits, and 4 blocks of 128, without gradients, on drawn heads."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, width // _HEAD_WIDTH, length, _HEAD_WIDTH, generator=generator)
        for length in (queries, keys, keys)
    )

    @torch.no_grad()
    def dense() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=queries > 1)

    @torch.no_grad()
    def exact() -> torch.Tensor:
        return topk_sparse_attention(query, key, value, DEFAULT_TOPK)

    @torch.no_grad()
    def block() -> torch.Tensor:
        return topk_block_attention(query, key, value, DEFAULT_TOPK_BLOCKS, block_size=DEFAULT_BLOCK_SIZE)

    return [Arm(SDPA, dense), Arm(EXACT, exact), Arm(BLOCK, block)]
