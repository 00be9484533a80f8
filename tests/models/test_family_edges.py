"""What lies at the edge of the shared table: odd masks and caches are honoured or refused, never ignored."""

import pytest
import torch
from transformers import PreTrainedConfig

from moe_hf import ConfigError
from moe_hf.models.auto import FAMILIES
from moe_hf.models.info import get_moe_model_info
from tests.models.families import KINDS, TINY, tiny_family

B, S = 3, 13
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
STATEFUL = [
    kind
    for kind, (model_type, _) in KINDS.items()
    if model_type not in ("gpt2_moe", "megabyte_moe") and kind not in ("llama", "llama-window", "llama-behind")
]


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (B, S), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted_exactly_and_so_are_those_of_the_dense_twin(kind: str) -> None:
    model_type, fields = KINDS[kind]
    family = FAMILIES[model_type]
    config = family.config(**{**TINY, **fields})
    info = get_moe_model_info(config)
    assert info["total_params"] == sum(p.numel() for p in family.causal_lm(config).parameters())
    config.make_dense()
    assert info["dense_twin_params"] == sum(p.numel() for p in family.causal_lm(config).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_configuration_is_read_by_the_base_class(kind: str, tmp_path) -> None:
    model_type, fields = KINDS[kind]
    config = FAMILIES[model_type].config(**{**TINY, **fields})
    config.save_pretrained(tmp_path)
    PreTrainedConfig.from_json_file(tmp_path / "config.json")
    again = type(config).from_pretrained(tmp_path)
    assert (again.layer_types, again.mixer_of_layer) == (config.layer_types, config.mixer_of_layer)


@pytest.mark.parametrize("kind", STATEFUL)
def test_masks_that_a_state_cannot_honour_are_refused(kind: str, ids) -> None:
    model = tiny_family(kind)
    square = torch.zeros(B, 1, S, S)
    for mask in (square, {"full_attention": square}, torch.ones(B, S - 1), torch.ones(B, S + 2)):
        with pytest.raises(ConfigError, match="attention_mask of"):
            model(ids, attention_mask=mask)


@pytest.mark.parametrize("kind", STATEFUL)
def test_bounds_of_documents_keep_them_apart_and_a_mask_that_hides_nothing_does_not_matter(kind: str, ids) -> None:
    model = tiny_family(kind)
    bounds = torch.tensor([0, 5, S], dtype=torch.int32)
    positions = torch.cat([torch.arange(5), torch.arange(S - 5)])[None]
    with torch.no_grad():
        alone = torch.cat([model(ids[:1, :5]).logits, model(ids[:1, 5:]).logits], dim=1)
        bounded = model(ids[:1], cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=8, max_length_k=8).logits
        masked = model(ids[:1], position_ids=positions, attention_mask=torch.ones(1, S), use_cache=False).logits
    torch.testing.assert_close(bounded, alone, **CLOSE)
    torch.testing.assert_close(masked, alone, **CLOSE)


@pytest.mark.parametrize("kind", ["gpt2", "mamba2", "rwkv7-attention"])
def test_a_cache_is_refused_where_layers_would_not_write_into_it(kind: str, ids, checkpointed) -> None:
    model = checkpointed(tiny_family(kind).train(), gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ConfigError, match="activation checkpointing"):
        model(ids, past_key_values=model.model.new_cache())
    assert model(ids, use_cache=True).past_key_values is None


@pytest.mark.parametrize("kind", ["mamba-attention", "rwkv7", "hyena"])
def test_holes_and_rows_of_nothing_but_padding_are_harmless(kind: str, ids) -> None:
    model = tiny_family(kind)
    mask = torch.ones(B, S, dtype=torch.long)
    mask[0, [2, 3, 7]] = 0
    mask[1] = 0
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        alone = model(ids[:1, mask[0].bool()], use_cache=False).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0, mask[0].bool()], alone[0], **CLOSE)


@pytest.mark.parametrize("kind", ["retnet-attention", "mamba1"])
def test_offloaded_caches_are_refused_where_states_are_kept(kind: str, ids) -> None:
    with pytest.raises(ConfigError, match="states are small"):
        tiny_family(kind).generate(ids, max_new_tokens=2, cache_implementation="offloaded")


@pytest.mark.parametrize("kind", ["mamba2", "rwkv4", "retnet-attention"])
def test_assisted_decoding_is_refused_by_name(kind: str, ids) -> None:
    with pytest.raises(ValueError, match="stateful"):
        tiny_family(kind).generate(ids[:1], max_new_tokens=2, prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("kind", ["mamba-attention", "rwkv7-attention", "retnet"])
def test_capacity_limits_count_beside_states(kind: str, ids) -> None:
    model = tiny_family(kind, router_eval_capacity_factor=0.05)
    greedy = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert model.generate(ids, **greedy).equal(model.generate(ids, use_cache=False, **greedy))


def test_a_call_that_is_too_long_for_one_layer_leaves_the_cache_of_all_as_it_was() -> None:
    model = tiny_family("hyena-attention", max_position_embeddings=16, mixer="attention,hyena")
    ids = torch.randint(3, 61, (2, 16), generator=torch.Generator().manual_seed(2))
    cache = model.model.new_cache()
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        model(ids[:, :9], past_key_values=cache)
        with pytest.raises(ConfigError):
            model(torch.cat([ids, ids], dim=1), past_key_values=cache)
        torch.testing.assert_close(model(ids[:, 9:], past_key_values=cache).logits, full[:, 9:], **CLOSE)
