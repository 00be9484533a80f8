"""What all MegaByte classes share: vectors of new ids in both embeddings."""

import torch

from moe_hf.models.megabyte.model import MegaByteWithMoE
from tests.models.megabyte.tiny import tiny


def test_new_ids_get_vectors_in_both_embeddings(ids, tmp_path) -> None:
    model = tiny(tie_word_embeddings=True)
    before = model(ids, use_cache=False).logits
    model.resize_token_embeddings(64)
    after = model(ids, use_cache=False).logits
    assert after.shape[-1] == 64
    torch.testing.assert_close(after[..., :61], before)
    assert torch.isfinite(model(torch.full((1, 9), 63), use_cache=False).logits).all()
    model.save_pretrained(tmp_path)
    loaded = MegaByteWithMoE.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.local_decoder.embed_tokens.weight
    torch.testing.assert_close(loaded(ids, use_cache=False).logits, after)
