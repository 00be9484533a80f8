from types import SimpleNamespace

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.cli.web.controls import setting_controls, settings_from
from moe_hf.inference.settings import SETTINGS, GenerationSettings


def made_of(*values, **options):
    return options["label"]


VALUES = list(GenerationSettings(seed=None))


def test_every_setting_has_a_control_with_its_value_and_its_help(config) -> None:
    controls = {part["props"].get("label"): part["props"] for part in config["components"]}
    for key, value in GenerationSettings(max_new_tokens=12)._asdict().items():
        control = controls[key.replace("_", " ")]
        assert control["value"] == ("random" if value is None else value)
        assert SETTINGS[key].help in control["info"]
    assert (controls["temperature"]["maximum"], controls["top p"]["maximum"]) == (2.0, 1)


def test_what_the_server_decides_is_a_text_that_gives_it_back() -> None:
    kinds = ("Slider", "Number", "Checkbox", "Textbox")
    made = SimpleNamespace(
        **dict.fromkeys(kinds, lambda *words, value=None, **options: words[-1] if value is None else value)
    )
    settings = GenerationSettings(top_k=None, repetition_penalty=None)
    values = setting_controls(made, settings)
    assert values.count("unset") == 2
    assert settings_from(values) == settings


def test_a_model_that_asks_for_more_than_is_usual_gets_it() -> None:
    made = SimpleNamespace(
        Slider=lambda low, high, **options: high, **dict.fromkeys(("Number", "Checkbox", "Textbox"), made_of)
    )
    assert setting_controls(made, GenerationSettings(temperature=3.0))[0] == 3.0


def test_what_the_controls_show_becomes_the_settings() -> None:
    values = [0.5, 1.0, 20.0, 64, 1.1, "7", False]
    assert settings_from(values) == GenerationSettings(0.5, 1.0, 20, 64, 1.1, 7, False)
    assert settings_from([*values[:5], "random", True]).seed is None


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, 0, "temperature must be"),
        (1, 1.5, "top_p must be"),
        (2, None, "top_k must be"),
        (3, 0, "max_new_tokens must be"),
        (3, 2.5, "max_new_tokens must be"),
        (5, "soon", "seed must be"),
        (0, float("nan"), "temperature must be"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(index, value, message) -> None:
    values = ["random" if key == "seed" else value for key, value in zip(SETTINGS, VALUES, strict=True)]
    values[index] = value
    with pytest.raises(ConfigError, match=message):
        settings_from(values)
