"""Hyena's fields: what is refused by name, and the unit of time of its filters, which stays."""

from typing import Any

import pytest

from moe_hf import ConfigError, GPT2WithMoEConfig, HyenaWithMoEConfig


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("hyena_order", 1, r"an integer in \[2, 1000\]"),
        ("hyena_short_conv", 0, "an integer >= 1"),
        ("hyena_filter_width", 0, "an integer >= 1"),
        ("hyena_filter_layers", -1, r"an integer in \[0, 1000\]"),
        ("hyena_filter_embedding", 4, "an odd integer >= 3"),
        ("hyena_filter_frequency", 0, r"a number in \(0, 10000\]"),
        ("hyena_filter_shift", -0.1, r"a number in \[0, 10000\]"),
        ("hyena_dropout", 1.0, r"a number in \[0, 1\)"),
    ],
)
def test_names_what_is_wrong(field: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}={value} is not allowed; it must be {text}"):
        HyenaWithMoEConfig(**{field: value})


def test_the_filters_unit_of_time_stays_when_the_limit_is_raised(tmp_path) -> None:
    config = HyenaWithMoEConfig(max_position_embeddings=40)
    assert config.hyena_filter_time_base == config.hyena_lags == 40
    config.save_pretrained(tmp_path)
    assert HyenaWithMoEConfig.from_pretrained(tmp_path, max_position_embeddings=80).hyena_lags == 40
    # A model without filters has no such unit.
    assert GPT2WithMoEConfig().hyena_filter_time_base is None
