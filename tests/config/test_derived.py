"""A field that is left out stays None in the object and its file, and reads as what follows from the others."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_hf import MegaByteWithMoEConfig, RetNetWithMoEConfig, RWKVWithMoEConfig
from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig

MakeConfig = Callable[..., GPT2WithMoEConfig]


def test_widths_are_derived(tiny_config: MakeConfig) -> None:
    config = tiny_config(intermediate_size=None)
    assert (config.intermediate_size, config.moe_intermediate_size) == (128, 128)
    config = tiny_config(intermediate_size=40)
    assert (config.intermediate_size, config.moe_intermediate_size) == (40, 40)
    config = tiny_config(intermediate_size=40, moe_intermediate_size=24)
    assert (config.intermediate_size, config.moe_intermediate_size) == (40, 24)


def test_a_usual_list_of_ffns_follows_the_number_of_layers_and_their_placement(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2).mlp_layer_types == ["sparse", "dense"]
    moved = GPT2WithMoEConfig.from_pretrained(tmp_path, mlp_placement="interleaved")
    assert moved.mlp_layer_types == ["none", "sparse"] * 2
    tiny_config(mlp_layer_types=["dense", "sparse", "sparse", "dense"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="2 entries"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2)


def test_overriding_what_a_list_was_derived_from_derives_it_again(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, mixer_short_conv=2).layer_types == ["attention_with_state"] * 4
    deeper = GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2, mlp_layer_types=["sparse"] * 2)
    assert deeper.layer_types == ["full_attention"] * 2


def test_the_balance_loss_of_a_router_that_balances_itself_is_small(tiny_config: MakeConfig, tmp_path: Path) -> None:
    assert tiny_config().router_aux_loss_coef == 0.01
    config = tiny_config(router_type="sigmoid_bias")
    assert config.router_aux_loss_coef == 1e-4
    config.save_pretrained(tmp_path)
    # A weight that was derived follows the router; one that was chosen stays.
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, router_type="top_k").router_aux_loss_coef == 0.01
    tiny_config(router_aux_loss_coef=0.3).save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path, router_type="sigmoid_bias").router_aux_loss_coef == 0.3


def test_a_twin_without_routers_has_no_balance_loss(tiny_config: MakeConfig, tmp_path: Path) -> None:
    assert tiny_config(mlp_layer_types=["dense"] * 4).router_aux_loss_coef == 0.0
    config = tiny_config(router_aux_loss_coef=0.3)
    config.make_dense()
    config.save_pretrained(tmp_path)
    assert config.router_aux_loss_coef == GPT2WithMoEConfig.from_pretrained(tmp_path).router_aux_loss_coef == 0.0
    # With experts again it has one.
    again = GPT2WithMoEConfig.from_pretrained(tmp_path, mlp_layer_types=["sparse"] * 4)
    assert again.router_aux_loss_coef == 0.01


def test_what_was_left_out_stays_none_in_the_file(tmp_path: Path) -> None:
    config = GPT2WithMoEConfig()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "layer_types" not in saved
    for name in GPT2WithMoEConfig.derived_fields:
        assert saved.get(name) is None
        assert config.stored(name) is None
        assert getattr(config, name) is not None
    assert config.n_inner == config.intermediate_size == 3072


def test_what_was_given_beside_something_left_out_stays_even_where_it_is_the_default(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    given = {"intermediate_size": 128, "moe_intermediate_size": None, "router_aux_loss_coef": 0.01}
    tiny_config(**given, mlp_layer_types=["sparse", "dense"] * 2).save_pretrained(tmp_path)
    loaded = GPT2WithMoEConfig.from_pretrained(tmp_path, hidden_size=64, router_type="sigmoid_bias")
    assert (loaded.intermediate_size, loaded.router_aux_loss_coef) == (128, 0.01)
    with pytest.raises(ConfigError, match="mlp_layer_types"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2)


def test_a_file_with_nothing_left_out_looks_like_an_older_one(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    tiny_config(**derived_values(config)).save_pretrained(tmp_path)
    loaded = GPT2WithMoEConfig.from_pretrained(tmp_path, router_type="sigmoid_bias", num_hidden_layers=2)
    assert (loaded.router_aux_loss_coef, loaded.mlp_layer_types) == (1e-4, ["sparse", "dense"])


def derived_values(config: MoEDecoderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.derived_fields}


def save_as_before(config: MoEDecoderConfig, folder: Path) -> dict[str, Any]:
    """A `config.json` of an earlier version, which holds what was derived; gives its content."""
    config.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    older = {**saved, **derived_values(config)}
    if isinstance(config, MegaByteWithMoEConfig):
        older["local_config"] = {**saved["local_config"], **derived_values(config.local_decoder_config)}
    (folder / "config.json").write_text(json.dumps(older))
    return older


def test_an_older_file_which_holds_derived_values_gives_the_same_configuration(tmp_path: Path) -> None:
    config = GPT2WithMoEConfig(num_hidden_layers=3, router_type="sigmoid_bias")
    saved = save_as_before(config, tmp_path)
    loaded = GPT2WithMoEConfig.from_pretrained(tmp_path)
    assert all(getattr(loaded, name) == getattr(config, name) for name in saved if name != "transformers_version")
    assert loaded.layer_types == config.layer_types


def test_what_an_older_file_derived_follows_an_override(tiny_config: MakeConfig, tmp_path: Path) -> None:
    save_as_before(tiny_config(), tmp_path)
    load = GPT2WithMoEConfig.from_pretrained
    assert load(tmp_path, num_hidden_layers=2).mlp_layer_types == ["sparse", "dense"]
    assert load(tmp_path, mlp_placement="interleaved").mlp_layer_types == ["none", "sparse"] * 2
    assert load(tmp_path, router_type="sigmoid_bias").router_aux_loss_coef == 1e-4
    assert load(tmp_path, router_type="sigmoid_bias", router_aux_loss_coef=0.01).router_aux_loss_coef == 0.01
    save_as_before(RWKVWithMoEConfig(), tmp_path)
    assert RWKVWithMoEConfig.from_pretrained(tmp_path, rwkv_version=4).mlp_token_shift == "rwkv4"
    save_as_before(MegaByteWithMoEConfig(hidden_size=64, num_attention_heads=4, patch_size=8), tmp_path)
    assert MegaByteWithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2).sparse_layers == [0]
    routed = MegaByteWithMoEConfig.from_pretrained(tmp_path, router_type="sigmoid_bias")
    assert (routed.router_aux_loss_coef, routed.local_decoder_config.router_aux_loss_coef) == (1e-4, 1e-4)


def test_what_is_only_right_with_the_override_is_judged_with_it(tiny_config: MakeConfig, tmp_path: Path) -> None:
    load = GPT2WithMoEConfig.from_pretrained
    # Alternating layers, which the file does not have, could not hold three routers.
    save_as_before(tiny_config(mlp_layer_types=["sparse"] * 4, router_num_hash_layers=3), tmp_path)
    assert load(tmp_path, hidden_size=64).router_num_hash_layers == 3
    older = save_as_before(tiny_config(), tmp_path)
    for wrong in ({"num_experts": -1}, {"num_hidden_layers": 10**12}):
        (tmp_path / "config.json").write_text(json.dumps({**older, **wrong}))
        assert load(tmp_path, num_experts=4, num_hidden_layers=4).sparse_layers == [0, 2]
    small = {"hidden_size": 64, "num_attention_heads": 4, "patch_size": 8}
    # The local decoder has no place for the bytes that the default would look back at.
    save_as_before(MegaByteWithMoEConfig(**small, local_lookback=0), tmp_path)
    assert MegaByteWithMoEConfig.from_pretrained(tmp_path, router_jitter_noise=0.1).local_lookback == 0


def test_what_differs_from_what_an_older_file_would_derive_was_chosen(tiny_config: MakeConfig, tmp_path: Path) -> None:
    chosen = {"intermediate_size": 40, "router_aux_loss_coef": 0.3, "mlp_layer_types": ["dense", *["sparse"] * 3]}
    save_as_before(tiny_config(**chosen), tmp_path)
    loaded = GPT2WithMoEConfig.from_pretrained(tmp_path, hidden_size=64, router_type="sigmoid_bias")
    assert {name: getattr(loaded, name) for name in chosen} == chosen
    with pytest.raises(ConfigError, match="mlp_layer_types"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, num_hidden_layers=2)


def test_a_copy_derives_for_itself(tiny_config: MakeConfig) -> None:
    config = tiny_config(intermediate_size=None)
    twin = copy.deepcopy(config)
    twin.hidden_size = 64
    assert (config.intermediate_size, twin.intermediate_size) == (128, 256)


def test_making_a_twin_dense_is_a_choice_that_is_saved(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    config.make_dense()
    config.save_pretrained(tmp_path)
    assert GPT2WithMoEConfig.from_pretrained(tmp_path).mlp_layer_types == ["dense"] * 4


def test_families_derive_what_is_their_own() -> None:
    assert RetNetWithMoEConfig(hidden_size=768).intermediate_size == 1024
    assert RWKVWithMoEConfig().stored("mlp_token_shift") is None
    assert RWKVWithMoEConfig(rwkv_version=4).mlp_token_shift == "rwkv4"
    assert MegaByteWithMoEConfig(hidden_size=64, num_attention_heads=4, patch_size=8).local_lookback == 4
