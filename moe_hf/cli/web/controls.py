"""Controls for the settings of answers, made from the table of settings, and what they are set to."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from moe_hf.inference.settings import SETTINGS, UNSET, GenerationSettings, parse_setting

STEP = 0.05


def setting_controls(gradio: ModuleType, settings: GenerationSettings) -> list[Any]:
    """A slider, a number, a tick box or a text for each setting, in the order of `SETTINGS`."""
    made: Any = gradio
    controls = []
    for key, value in settings._asdict().items():
        rule = SETTINGS[key]
        texts = {"label": key.replace("_", " "), "info": f"{rule.help}; {rule.allowed}"}
        if value is None:
            controls.append(made.Textbox("random" if rule.kind == "seed" else UNSET, **texts))
        elif rule.kind == "float":
            # Twice the largest usual value is far enough, unless the model itself asks for more.
            most = max(value, min(rule.high, 2 * max(map(float, rule.usual.split()))))
            controls.append(made.Slider(STEP, most, value=value, step=STEP, **texts))
        elif rule.kind == "bool":
            controls.append(made.Checkbox(value, **texts))
        elif rule.kind == "int":
            controls.append(made.Number(value, precision=0, minimum=rule.low, maximum=rule.high, **texts))
        else:
            controls.append(made.Textbox(str(value), **texts))
    return controls


def settings_from(values: Sequence[Any]) -> GenerationSettings:
    """The settings that the controls show.

    Args:
        values: in the order of `SETTINGS`.

    Raises:
        ConfigError: one is out of range, or left empty.
    """
    chosen = {}
    for key, value in zip(GenerationSettings._fields, values, strict=True):
        whole = SETTINGS[key].kind == "int" and isinstance(value, float) and value.is_integer()
        chosen[key] = parse_setting(key, str(int(value) if whole else value))
    return GenerationSettings(**chosen)
