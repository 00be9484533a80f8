"""Flags become fields of a configuration."""

import argparse

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.cli.overrides import add_config_flags, given_config_fields, layer_pattern


def test_layer_pattern_none_is_the_dense_twin():
    assert layer_pattern("none", 2) == ["dense", "dense"]


def parsed(words, names=("num_experts", "norm_topk_prob", "router_jitter_noise", "router_type", "mlp_layer_types")):
    parser = argparse.ArgumentParser()
    add_config_flags(parser, list(names))
    return given_config_fields(parser.parse_args(words), list(names))


def test_flags_have_the_types_of_their_fields_and_absent_ones_stay_out():
    assert parsed([]) == {}
    words = "--num_experts 3 --norm_topk_prob TRUE --router_jitter_noise 1e-2 --router_type hash --mlp_layer_types all"
    assert parsed(words.split()) == {
        "num_experts": 3,
        "norm_topk_prob": True,
        "router_jitter_noise": 0.01,
        "router_type": "hash",
        "mlp_layer_types": "all",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num_experts many", "num_experts must be a number, got 'many'"),
        ("--norm_topk_prob perhaps", "norm_topk_prob must be true or false, got 'perhaps'"),
    ],
)
def test_a_value_of_another_type_is_named(words, message, capsys):
    with pytest.raises(SystemExit):
        parsed(words.split())
    assert message in capsys.readouterr().err


def test_layer_patterns_are_words_or_lists():
    assert layer_pattern("alternate", 3) == ["sparse", "dense", "sparse"]
    assert layer_pattern("sparse, dense", 2) == ["sparse", "dense"]
    with pytest.raises(ConfigError, match="mlp_layer_types='spares'"):
        layer_pattern("spares", 2)
