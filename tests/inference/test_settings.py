import pytest
from transformers import GenerationConfig

from moe_hf.base.errors import ConfigError
from moe_hf.inference.settings import (
    SETTINGS,
    GenerationSettings,
    settings_of,
    show_settings,
    split_assignment,
    with_setting,
)


def test_every_field_of_the_settings_has_a_rule():
    assert tuple(SETTINGS) == GenerationSettings._fields


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("temperature", "0.2", 0.2),
        ("top_p", "1", 1.0),
        ("top_k", "0", 0),
        ("max_new_tokens", "7", 7),
        ("repetition_penalty", "1.3", 1.3),
        ("seed", "12", 12),
        ("seed", "random", None),
        ("do_sample", "False", False),
    ],
)
def test_a_value_in_range_is_taken(key, text, value):
    assert getattr(with_setting(GenerationSettings(), key, text), key) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("temperature", "0"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("top_p", "1.1"),
        ("top_k", "-1"),
        ("top_k", "2.5"),
        ("max_new_tokens", "0"),
        ("repetition_penalty", "ten"),
        ("seed", "-3"),
        ("do_sample", "maybe"),
    ],
)
def test_a_value_out_of_range_is_refused_with_key_value_and_range(key, text):
    with pytest.raises(ConfigError, match=rf"{key} must be .*got '{text}'") as caught:
        with_setting(GenerationSettings(), key, text)
    assert SETTINGS[key].allowed in str(caught.value)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        with_setting(GenerationSettings(), "temprature", "1")


@pytest.mark.parametrize("text", ["", "top_p", "top_p=", "=3"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match="expected key=value"):
        split_assignment(text)


def test_a_model_s_own_generation_config_is_the_default():
    own = GenerationConfig(do_sample=False, top_k=9, max_new_tokens=11)
    assert settings_of(own) == GenerationSettings(do_sample=False, top_k=9, max_new_tokens=11)


def test_a_model_s_value_out_of_range_is_left_out():
    assert settings_of(GenerationConfig(temperature=0.0)).temperature == GenerationSettings().temperature


def test_the_table_spells_values_as_set_takes_them():
    settings = GenerationSettings(do_sample=False, top_k=3, repetition_penalty=None)
    again = GenerationSettings()
    for key, value, _ in show_settings(settings):
        again = with_setting(again, key, value)
    assert again == settings
