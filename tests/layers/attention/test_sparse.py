"""Sparse attention in whole models: this package's, and a stock Llama (grouped queries) and GPT-2 of transformers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from moe_hf.base.errors import ConfigError
from moe_hf.layers.attention.sparse import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_TOPK,
    DEFAULT_TOPK_BLOCKS,
    register_sparse_attention,
    topk_block_forward,
    topk_sparse_forward,
)
from moe_hf.layers.caches.host import CACHE_NAME, named

ALL_KEYS = {"attn_topk": 100, "attn_topk_blocks": 100}
DEFAULTS = {
    "attn_topk": DEFAULT_TOPK,
    "attn_topk_blocks": DEFAULT_TOPK_BLOCKS,
    "attn_block_size": DEFAULT_BLOCK_SIZE,
}
FEW = {"topk_sparse": {"attn_topk": 5}, "topk_block": {"attn_topk_blocks": 2, "attn_block_size": 4}}


@pytest.fixture(scope="module", params=["llama", "gpt2", "ours"])
def dense(request: pytest.FixtureRequest, dense_gpt2: Any, tiny_model: Any) -> PreTrainedModel:
    if request.param == "gpt2":
        return dense_gpt2(GPT2LMHeadModel, n_layer=2, pad_token_id=0)
    if request.param == "ours":
        return tiny_model(max_position_embeddings=64, num_hidden_layers=2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=list(FEW))
def sparse(request: pytest.FixtureRequest, dense: PreTrainedModel) -> PreTrainedModel:
    """The model with few keys or blocks per query, set in its config."""
    dense.set_attn_implementation(request.param)
    for name, value in {**DEFAULTS, **FEW[request.param]}.items():
        setattr(dense.config, name, value)
    return dense.eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel, *args: Any, **kwargs: Any) -> torch.Tensor:
    return model(*args, **kwargs).logits


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((got - wanted).norm() <= 1e-5 * wanted.norm())


def left_padded(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    padded = torch.cat([torch.zeros_like(ids[:, :3]), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    return {"input_ids": padded, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def test_all_keys_equal_sdpa_and_few_do_not(sparse: PreTrainedModel, ids: torch.Tensor) -> None:
    few, everything = logits(sparse, ids), logits(sparse, ids, **ALL_KEYS)
    sparse.set_attn_implementation("sdpa")
    wanted = logits(sparse, ids)
    assert close(everything, wanted)
    assert not close(few, wanted)


def test_left_and_right_padding_change_nothing(sparse: PreTrainedModel, ids: torch.Tensor) -> None:
    wanted = logits(sparse, ids)
    assert close(logits(sparse, **left_padded(ids))[:, 3:], wanted)
    behind = torch.cat([ids, torch.zeros_like(ids[:, :3])], dim=1)
    assert close(logits(sparse, behind, attention_mask=(behind > 0).long())[:, :20], wanted)


def test_packed_documents_equal_separate_ones(sparse: PreTrainedModel, ids: torch.Tensor) -> None:
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None].expand(2, -1)
    packed = logits(sparse, ids, position_ids=positions, use_cache=False)
    assert close(packed, torch.cat([logits(sparse, ids[:, :12]), logits(sparse, ids[:, 12:])], dim=1))


@pytest.mark.parametrize("edges", [(0, 12, 13, 17, 20), (0, 1, 20)])
def test_a_cache_changes_nothing(sparse: PreTrainedModel, ids: torch.Tensor, edges: tuple[int, ...]) -> None:
    parts, cache = [], None
    with torch.no_grad():
        for start, stop in pairwise(edges):
            out = sparse(ids[:, start:stop], **named(cache), use_cache=True)
            parts.append(out.logits)
            cache = out[CACHE_NAME]
    assert close(torch.cat(parts, dim=1), logits(sparse, ids))


def test_generation_is_the_same_with_any_cache_and_padding(sparse: PreTrainedModel, ids: torch.Tensor) -> None:
    padded = left_padded(ids)
    del padded["position_ids"]
    shared = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = sparse.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **shared)
    for caching in ({}, {"cache_implementation": "static"}):
        assert sparse.generate(ids, attention_mask=torch.ones_like(ids), **shared, **caching).equal(wanted)
        assert sparse.generate(**padded, **shared, **caching)[:, 3:].equal(wanted)


def test_a_static_cache_has_room_behind_the_first_tokens(sparse: PreTrainedModel, ids: torch.Tensor) -> None:
    # Without a mask, several queries against more keys stand at the first of them.
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8)
    forward = {"topk_sparse": topk_sparse_forward, "topk_block": topk_block_forward}[sparse.config._attn_implementation]
    module = nn.Module()
    module.config, module.layer_idx = sparse.config, 0
    with_room, _ = forward(module, query, key, key, None)
    assert with_room.equal(forward(module, query, key[:, :, :6], key[:, :, :6], None)[0])


def test_weights_are_returned_on_request(sparse: PreTrainedModel, ids: torch.Tensor) -> None:
    if isinstance(sparse, GPT2LMHeadModel):
        pytest.skip("its attention layer does not hand output_attentions down")
    out = sparse(ids, output_attentions=True)
    assert close(out.logits, logits(sparse, ids))
    weights = out.attentions[1]
    most = 5 if sparse.config._attn_implementation == "topk_sparse" else 8
    assert weights.shape == (2, 4, 20, 20)
    assert int((weights > 0).sum(dim=-1).max()) == most
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 20))


def test_trains_with_dropout_and_under_activation_checkpointing(
    sparse: PreTrainedModel, ids: torch.Tensor, checkpointed: Any
) -> None:
    sparse.train()
    gradients = []
    for _ in range(2):
        sparse.zero_grad()
        torch.manual_seed(3)
        sparse(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in sparse.parameters() if p.grad is not None]))
        checkpointed(sparse)
    sparse.zero_grad()
    sparse._set_gradient_checkpointing(enable=False)
    assert gradients[0].isfinite().all()
    assert close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", list(FEW))
def test_compiles_whole(name: str, tiny_model: Any, ids: torch.Tensor) -> None:
    model = tiny_model(attn_implementation=name, num_hidden_layers=1, **FEW[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert close(compiled(**left_padded(ids)).logits, logits(model, **left_padded(ids)))


@pytest.mark.parametrize(
    ("settings", "few"), [({"attn_topk": [5, 100]}, {"attn_topk": [5, 5]}), ({"attn_topk": 0.9}, {"attn_topk": 0.2})]
)
def test_a_list_counts_per_layer_and_a_fraction_of_what_is_seen(
    dense: PreTrainedModel, ids: torch.Tensor, settings: dict[str, Any], few: dict[str, Any]
) -> None:
    dense.set_attn_implementation("topk_sparse")
    first, second, whole = (logits(dense, ids, **options) for options in (settings, few, ALL_KEYS))
    assert not close(first, second)
    assert not close(first, whole)
    with pytest.raises(ConfigError, match="has no entry for layer 1"):
        logits(dense, ids, attn_topk=[5])


class Attention(nn.Module):
    """As bare as an attention layer of any model may be."""

    is_causal = True


def attend(name: str, **options: Any) -> torch.Tensor:
    forward = {"topk_sparse": topk_sparse_forward, "topk_block": topk_block_forward}[name]
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    return forward(Attention(), query, key, value, options.pop("mask", None), attn_topk=20, **options)[0]


@pytest.mark.parametrize("name", list(FEW))
def test_softcap_sinks_and_windows_are_honoured(name: str) -> None:
    plain = attend(name)
    for options in ({"softcap": 0.5}, {"s_aux": torch.ones(4)}, {"sliding_window": 6}, {"scaling": 0.9}):
        assert not close(attend(name, **options), plain)
    # A window says the same as a mask, and as a keyword where there is none.
    window = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril().triu(-5)
    assert close(attend(name, sliding_window=6), attend("topk_sparse", mask=window))
    assert close(attend(name, sliding_window=6, mask=window), attend("topk_sparse", mask=window))


@pytest.mark.parametrize("name", list(FEW))
def test_what_cannot_be_honoured_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="does not support a bias by position"):
        attend(name, position_bias=torch.zeros(1, 4, 20, 20))
    with pytest.raises(ConfigError, match="does not support a paged cache"):
        attend(name, cache=object())
    if name == "topk_block":
        with pytest.raises(ConfigError, match="for causal self-attention"):
            attend(name, is_causal=False)


def test_a_layer_that_is_not_causal_sees_all_keys() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 20, 8)
    out, _ = topk_sparse_forward(Attention(), x, x, x, None, is_causal=False, attn_topk=20)
    assert close(out.transpose(1, 2), nn.functional.scaled_dot_product_attention(x, x, x))


def test_names_that_are_taken_stay_with_whoever_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "topk_sparse", topk_block_forward)
    register_sparse_attention(replace=False)
    assert AttentionInterface._global_mapping["topk_sparse"] is topk_block_forward
    register_sparse_attention()
    assert AttentionInterface._global_mapping["topk_sparse"] is topk_sparse_forward
