"""How answers are drawn: the settings of a chat, with the range that each may take."""

from typing import TYPE_CHECKING, Any, NamedTuple

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import Registry

if TYPE_CHECKING:
    # The help of a command reads this module, and must not wait for transformers.
    from transformers import GenerationConfig

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# The word that leaves a setting to the server, and the settings that may be left so.
UNSET = "unset"
_MAY_BE_UNSET = ("top_k", "repetition_penalty")


class GenerationSettings(NamedTuple):
    """What `/set` can change; `SETTINGS` holds the range of each field.

    `seed` None means a fresh seed per answer; the seed that was used stands in the reply. `top_k` and
    `repetition_penalty` None leave it to the server, or to the model's own generation config.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int | None = 50
    max_new_tokens: int = 256
    repetition_penalty: float | None = 1.0
    seed: int | None = None
    do_sample: bool = True


class Setting(NamedTuple):
    """The kind of one setting (`float`, `int`, `bool` or `seed`), its bounds, what it does, and usual values."""

    kind: str
    low: float
    high: float
    allowed: str
    help: str
    usual: str


# The lower bound of a float is exclusive, all others are inclusive.
SETTINGS: Registry[Setting] = Registry(
    "setting",
    {
        "temperature": Setting(
            "float", 0, 10, "a number in (0, 10]", "flatter (> 1) or sharper (< 1) choice", "0.3 0.7 1.0"
        ),
        "top_p": Setting(
            "float", 0, 1, "a number in (0, 1]", "keep the likeliest tokens up to this probability", "0.8 0.95 1.0"
        ),
        "top_k": Setting(
            "int", 0, 1_000_000, "a whole number >= 0 (0 = off)", "keep only the k likeliest tokens", "0 1 20 50"
        ),
        "max_new_tokens": Setting("int", 1, 1_000_000, "a whole number >= 1", "longest answer, in tokens", "64 256"),
        "repetition_penalty": Setting(
            "float", 0, 10, "a number in (0, 10] (1 = off)", "above 1: repeat less", "1.0 1.1 1.3"
        ),
        "seed": Setting(
            "seed", 0, 2**63 - 1, "a whole number >= 0, or 'random'", "start of the random numbers", "random"
        ),
        "do_sample": Setting(
            "bool", 0, 1, "true or false", "draw tokens at random; false: always the likeliest", "true false"
        ),
    },
)

_BOOLS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def with_setting(settings: GenerationSettings, key: str, text: str) -> GenerationSettings:
    """`settings` with one field changed to the value that `text` spells.

    Raises:
        ConfigError: the key is unknown, or the value is no number of its kind or out of its range.

    >>> with_setting(GenerationSettings(), "top_k", "5").top_k
    5
    """
    return settings._replace(**{key: parse_setting(key, text)})


def parse_setting(key: str, text: str) -> Any:
    """The value that `text` spells for the setting `key`.

    Raises:
        ConfigError: as for `with_setting`.
    """
    rule = SETTINGS[key]
    text = text.strip().lower()
    if rule.kind == "bool" and text in _BOOLS:
        return _BOOLS[text]
    if (rule.kind == "seed" and text == "random") or (key in _MAY_BE_UNSET and text == UNSET):
        return None
    if rule.kind != "bool":
        try:
            value = float(text) if rule.kind == "float" else int(text)
        except ValueError:
            raise _refused(key, text) from None
        if _in_range(rule, value):
            return value
    raise _refused(key, text)


def _in_range(rule: Setting, value: float) -> bool:
    return (rule.low < value if rule.kind == "float" else rule.low <= value) and value <= rule.high


def _refused(key: str, text: str) -> ConfigError:
    hint = "; for greedy answers use do_sample=false" if key == "temperature" else ""
    return ConfigError(f"{key} must be {SETTINGS[key].allowed}, got {text!r}{hint}")


def setting_words() -> list[str]:
    """What may stand behind /set: each `key=`, then each with its usual values."""
    return [f"{key}=" for key in SETTINGS] + [
        f"{key}={value}" for key, setting in SETTINGS.items() for value in setting.usual.split()
    ]


def split_assignment(text: str) -> tuple[str, str]:
    """The key and the value of `key=value` (also `key value`).

    Raises:
        ConfigError: there is no key or no value.

    >>> split_assignment("top_p = 0.9")
    ('top_p', '0.9')
    """
    key, separator, value = text.partition("=" if "=" in text else " ")
    if not (separator and key.strip() and value.strip()):
        raise ConfigError(f"expected key=value, got {text.strip()!r}; keys: {', '.join(SETTINGS)}")
    return key.strip(), value.strip()


def settings_of(generation_config: "GenerationConfig") -> GenerationSettings:
    """The settings that a model asks for itself; what it leaves open or sets out of range keeps the default."""
    own: dict[str, Any] = {}
    for key in ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty"):
        value = getattr(generation_config, key)
        if isinstance(value, int | float) and _in_range(SETTINGS[key], value):
            own[key] = value
    if generation_config.do_sample is not None:
        own["do_sample"] = bool(generation_config.do_sample)
    return GenerationSettings(**own)


def show_settings(settings: GenerationSettings) -> list[tuple[str, str, str]]:
    """Name, current value and explanation of each setting, for a table."""
    rows = []
    for key, value in settings._asdict().items():
        nothing = "random" if key == "seed" else UNSET
        shown = nothing if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((key, shown, f"{SETTINGS[key].help}; {SETTINGS[key].allowed}"))
    return rows
