"""MegaByte's configuration: what the local decoder takes over, and what does not fit together."""

from typing import Any

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig

FIELDS: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "max_position_embeddings": 70,
    "num_experts": 4,
    "patch_size": 6,
}


def config(**overrides: Any) -> MegaByteWithMoEConfig:
    return MegaByteWithMoEConfig(**{**FIELDS, **overrides})


def test_the_local_decoder_is_half_as_large_and_else_alike() -> None:
    local = config(resid_dropout=0.1, mlp_gated=True, mixer="retention", position_embedding_type="none").local_config
    assert (local.hidden_size, local.num_hidden_layers, local.num_attention_heads) == (24, 2, 3)
    assert local.intermediate_size == local.moe_intermediate_size == 48
    assert local.resid_dropout == 0.1
    assert local.mlp_gated
    # Patches are short, and attention alone does not know their order.
    assert (local.mixer, local.position_embedding_type, local.max_position_embeddings) == ("attention", "learned", 9)


def test_the_local_decoder_s_own_fields_win() -> None:
    local = config(local_config={"hidden_size": 36, "num_attention_heads": 2, "resid_dropout": 0.2}).local_config
    assert (local.hidden_size, local.num_attention_heads, local.resid_dropout) == (36, 2, 0.2)
    # FFNs grow and shrink with the width.
    assert local.intermediate_size == 72
    assert config(local_config={"intermediate_size": 50}).local_config.moe_intermediate_size == 50


def test_a_whole_local_configuration_is_taken_as_it_is() -> None:
    local = config().local_config
    assert config(local_config=local).local_config is local


def test_heads_always_divide_the_local_width() -> None:
    for heads in (1, 2, 3, 4, 6):
        local = config(num_attention_heads=heads).local_config
        assert local.hidden_size % local.num_attention_heads == 0


def test_without_experts_in_the_global_decoder_the_local_one_has_none_either() -> None:
    assert config(mlp_layer_types=["dense"] * 4).local_config.sparse_layers == []


def test_the_global_decoder_counts_patches() -> None:
    whole = config(router_z_loss_coef=0.5, dtype="bfloat16")
    part = whole.global_config
    assert type(part) is MoEDecoderConfig
    # 70 bytes are 11 whole patches; the patch of start stands before them.
    assert part.max_position_embeddings == 12
    assert (part.hidden_size, part.router_z_loss_coef, part.dtype) == (48, 0.5, whole.dtype)


def test_the_local_decoder_looks_half_a_patch_back_unless_told() -> None:
    assert config().local_lookback == 3
    assert config(local_lookback=0).local_config.max_position_embeddings == 6


def test_routers_of_both_decoders_are_counted() -> None:
    assert config().router_of_sparse_layer == ["top_k"] * 3


def test_backends_reach_both_decoders() -> None:
    whole = config(attn_implementation="eager", experts_implementation="batched_mm")
    for part in (whole.global_config, whole.local_config):
        assert part._attn_implementation == "eager"
        assert part._experts_implementation == "batched_mm"


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    whole = config(local_config={"num_hidden_layers": 3}, id2label={0: "a", 1: "b", 2: "c"})
    whole.save_pretrained(tmp_path)
    loaded = MegaByteWithMoEConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == whole.to_dict()
    assert type(loaded.local_config) is MoEDecoderConfig


def test_an_override_on_loading_reaches_both_decoders(tmp_path) -> None:
    config(local_config={"embd_dropout": 0.3}).save_pretrained(tmp_path)
    loaded = MegaByteWithMoEConfig.from_pretrained(
        tmp_path, resid_dropout=0.1, embd_dropout=0.2, router_type="sigmoid_bias"
    )
    local = loaded.local_config
    assert (loaded.resid_dropout, local.resid_dropout) == (0.1, 0.1)
    assert (loaded.router_type, local.router_type) == ("sigmoid_bias", "sigmoid_bias")
    assert loaded.router_aux_loss_coef == local.router_aux_loss_coef == 1e-4
    # But what the local decoder was given for itself stays.
    assert (loaded.embd_dropout, local.embd_dropout) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, "patch_size=0 is not allowed; it must be an integer >= 1"),
        ({"patch_size": 5}, "hidden_size=48 is not allowed; it must be a multiple of patch_size=5"),
        ({"router_type": "hash"}, "router_type='hash' is not allowed"),
        ({"router_num_hash_layers": 1}, "a patch has no id"),
        ({"global_config": {}}, "global_config is not allowed; the global decoder's fields are the configuration's"),
        ({"local_config": {"num_experts": 8}}, "local_config: num_experts=8 is not allowed; it must be 4"),
        ({"local_config": {"vocab_size": 8}}, "local_config: vocab_size=8 is not allowed; it must be 264"),
        ({"local_config": {"mixer": "retention"}}, "local_config: mixer='retention' is not allowed"),
        ({"local_config": {"max_position_embeddings": 8}}, "=8 .* at least patch_size \\+ local_lookback = 9"),
        (
            {"local_lookback": 7},
            r"local_lookback=7 is not allowed; it must be None or an integer in \[0, patch_size=6\]",
        ),
        ({"local_config": {"hiden_size": 24}}, "unknown field 'hiden_size'; did you mean 'hidden_size'"),
        ({"local_config": {"router_eval_capacity_factor": 1.0}}, "router_eval_capacity_factor=1.0 is not allowed"),
    ],
)
def test_what_does_not_fit_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)
