"""Trains a small model with full attention and asks what sparse attention costs it, without training it for that."""

import math
from typing import Any, NamedTuple

import torch

from moe_hf.bench.mixers.attention_arms import FULL, TOPK
from moe_hf.bench.studies.language_data import corpus_tokenizer, fresh_conversations, training_blocks
from moe_hf.bench.studies.timed_training import Recipe, heldout_losses, train
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.models.gpt2_moe import GPT2WithMoE

_CONTEXT = 256
_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    FULL: ("sdpa", {}),
    TOPK: ("topk_sparse", {"attn_topk": 64}),
    "top-k of 16 keys": ("topk_sparse", {"attn_topk": 16}),
    "4 blocks of 32 keys": ("topk_block", {"attn_topk_blocks": 4, "attn_block_size": 32}),
}


class Schooling(NamedTuple):
    """How much the model learns before it is asked: updates, and sequences in each."""

    steps: int = 200
    batch_size: int = 8
    heldout: int = 16


MOST_PERPLEXITY = 1.01
"""What `TOPK` may cost, over `FULL`."""


def perplexities(schooling: Schooling, seed: int = 0) -> dict[str, float]:
    """Perplexity per token of fresh conversations, (name of the attention) -> number, all of one trained model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = corpus_tokenizer(1024)
        torch.manual_seed(seed)
        config = GPT2WithMoEConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            mlp_layer_types=["dense"] * 2,
            max_position_embeddings=_CONTEXT,
            position_embedding_type="rotary",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        model = GPT2WithMoE(config)
        blocks = training_blocks(tokenizer, schooling.steps * schooling.batch_size, _CONTEXT, seed)
        recipe = Recipe(3e-3, schooling.batch_size, warmup_steps=10, eval_every=schooling.steps)
        for _ in train(model, blocks, recipe, {}):
            pass
        heldout = {"fresh": fresh_conversations(tokenizer, schooling.heldout, _CONTEXT)}
        found = {}
        for name, (implementation, fields) in _FORMS.items():
            model.set_attn_implementation(implementation)
            # Attention reads these at every call: the same weights serve all forms.
            for field, value in fields.items():
                setattr(model.config, field, value)
            found[name] = math.exp(heldout_losses(model, heldout, batch_size=4)["fresh"])
        return found
    finally:
        torch.set_num_threads(threads)
