"""The global model: it reads patches, once each, and gives context as loud as the bytes."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.models.auto import FAMILIES
from moe_hf.models.megabyte.model import MegaByteWithMoEModel
from tests.models.families import TINY
from tests.models.megabyte.tiny import P, S, greedy, tiny


def test_the_global_cache_grows_once_per_patch_and_the_local_one_is_reset(ids) -> None:
    back = 1
    model, cache = tiny(local_lookback=back), None
    patches, places = [], []
    for t in range(S):
        cache = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).past_key_values
        patches.append(cache.global_cache.get_seq_length())
        places.append(cache.local_cache.get_seq_length() if cache.local_cache is not None else None)
    assert patches == [1 + (t + 1) // P for t in range(S)]
    # The first call reads all at once.
    assert places[1:] == [(t + 1) % P + back + 1 for t in range(1, S)]
    assert cache.global_mask_BC is None


def test_fresh_the_global_decoder_is_as_loud_as_the_bytes() -> None:
    torch.manual_seed(0)
    fields = {**TINY, "hidden_size": 256, "patch_size": 8, "num_hidden_layers": 2, "initializer_range": 0.02}
    model = MegaByteWithMoEModel(FAMILIES["megabyte_moe"].config(**fields))
    with torch.no_grad():
        told = model.to_local(torch.randn(500, 32))
    assert float(told.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.local_start.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_a_row_longer_than_the_positions_is_a_clear_error(ids) -> None:
    model = tiny(max_position_embeddings=12)
    with pytest.raises(ConfigError, match="byte 16 is beyond max_position_embeddings=12; shorten the input"):
        greedy(model, ids[:, :11])
