"""Turns a command line, a run file and a recipe into the settings of one training run."""

import dataclasses
import json
import types
from argparse import Action, Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
from transformers import HfArgumentParser

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.runs.arguments import ModelArguments, RunArguments
from moe_hf.training.runs.checks import check_settings
from moe_hf.training.runs.recipes import training_recipe
from moe_hf.training.runs.run_file import parse_yaml, read_run_file
from moe_hf.training.training_arguments import MoETrainingArguments

_DATACLASSES: Any = (ModelArguments, DataArguments, RunArguments, MoETrainingArguments)
_NOT_GIVEN = object()


class Settings(NamedTuple):
    """All that one training run is told.

    `given` holds what the user said on the command line or in a run file, by flag name, `chosen` that and what the
    recipe of the size says; the rest are the flags' own defaults.
    """

    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: MoETrainingArguments
    given: dict[str, Any]
    chosen: dict[str, Any]


class _FlagParser(HfArgumentParser):
    """HfArgumentParser that raises ConfigError instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def flag_parser(prog: str = "train.py") -> HfArgumentParser:
    """The parser of every flag of `train.py`; its `format_help()` is the manual."""
    parser = _FlagParser(
        _DATACLASSES,
        prog=prog,
        allow_abbrev=False,
        description="Train a Mixture-of-Experts language model. Without any flag: the tiny preset on conversations "
        "that the package generates itself.",
    )
    parser.add_argument("--config", metavar="RUN.YAML", help="Run file: flag names and values; flags override it.")
    return parser


def parse_arguments(argv: Sequence[str], prog: str = "train.py") -> Settings:
    """The settings that a command line asks for: flags over the run file over the recipe of the size.

    Args:
        argv: the words after the program's name; with `--help` the manual is printed, with the defaults of the size
            that stands beside it, and the process is left.
        prog: the program's name in the help.

    Raises:
        ConfigError: an unknown flag or key (the text names the nearest), a value of the wrong type, or values that
            exclude each other.
    """
    parser = flag_parser(prog)
    if {"-h", "--help"} & set(argv):
        given = _given_values(parser, [word for word in argv if word not in ("-h", "--help")])
        # What the help calls a default is what the run would take.
        parser.set_defaults(**{**training_recipe(given, has_bf16()), **given})
        parser.print_help()
        parser.exit()
    return resolve_settings(_given_values(parser, argv))


def _given_values(parser: HfArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """What the flags and the run file on a command line say, by flag name."""
    # argparse fills in a default only where the namespace lacks the name: so what was given is told from what was not.
    namespace = Namespace(**{action.dest: _NOT_GIVEN for action in parser._actions if action.dest != "help"})
    # Words that argparse does not know come back, and are refused with the nearest flag.
    namespace, rest = parser.parse_known_args(list(argv), namespace)
    if rest:
        _refuse_words(rest, parser)
    flags = {name: value for name, value in vars(namespace).items() if value is not _NOT_GIVEN}
    path = flags.pop("config", None)
    filed = _typed_settings(read_run_file(path), parser, str(path)) if path else {}
    if "num_train_epochs" in flags:
        # Beside a number of steps the Trainer ignores a number of epochs.
        filed.pop("max_steps", None)
    return {**filed, **flags}


def resolve_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from typed values by flag name, completed by the recipe of the size.

    Raises:
        ConfigError: an unknown name, or values that exclude each other.
    """
    allowed = [field.name for kind in _DATACLASSES for field in dataclasses.fields(kind) if field.init]
    for name in given:
        if name not in allowed:
            raise ConfigError(f"unknown setting {name!r}{did_you_mean(name, allowed)}; train.py --help lists them all")
    # Pinned memory only speeds up copies to an accelerator; asked for without one, torch warns.
    machine = {"dataloader_pin_memory": torch.accelerator.is_available()}
    chosen = {**training_recipe(given, has_bf16()), **given}
    complete = {**machine, **chosen}
    try:
        model, data, run, training = (
            kind(**{f.name: complete[f.name] for f in dataclasses.fields(kind) if f.init and f.name in complete})
            for kind in _DATACLASSES
        )
    except ConfigError:
        # Ours say already what is wrong.
        raise
    # transformers checks its arguments with errors of any kind: a file that is absent, a word that is no number.
    except Exception as error:
        raise ConfigError(f"the training arguments don't fit together: {' '.join(str(error).split())}") from error
    settings = Settings(model, data, run, training, dict(given), chosen)
    check_settings(model, data, run, training, given)
    return settings


def has_bf16() -> bool:
    """Whether this machine has an accelerator that computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def model_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """The `--model_overrides` as configuration fields.

    Raises:
        ConfigError: a word is not of the form key=value.

    >>> model_overrides(["mixer_short_conv=3", "mlp_layer_types=[sparse, dense]"])
    {'mixer_short_conv': 3, 'mlp_layer_types': ['sparse', 'dense']}
    """
    fields = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not (key and sign):
            raise ConfigError(f"--model_overrides takes key=value, got {pair!r}")
        fields[key.strip()] = parse_yaml(value, f"--model_overrides {key}")
    return fields


def all_settings(settings: Settings) -> dict[str, Any]:
    """Every setting that a run depends on, by flag name, as plain values that a run file can hold.

    Of transformers' training arguments those stand in it that the user or the recipe chose, and the main ones always.
    """
    result: dict[str, Any] = {}
    for part in (settings.model, settings.data, settings.run):
        result |= dataclasses.asdict(part)
    result |= {name: getattr(settings.training, name) for name in _MAIN_FIELDS}
    # As they were given: transformers rewrites some.
    result |= settings.chosen
    return {
        name: [_plain(part) for part in value] if isinstance(value, list) else _plain(value)
        for name, value in result.items()
        if name not in _NOT_WRITTEN and (value is not None or name in settings.chosen)
    }


def _plain(value: Any) -> Any:
    """A member of an enumeration as its word."""
    return getattr(value, "value", value)


_MAIN_FIELDS = (
    "seed optim learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm max_steps num_train_epochs "
    "per_device_train_batch_size gradient_accumulation_steps logging_steps save_steps eval_strategy"
).split()

# A secret, and what belongs to one call: the folder is the one in which the run file lies.
_NOT_WRITTEN = ("hub_token", "output_dir", "resume", "resume_from_checkpoint", "dry_run")


def _refuse_words(rest: list[str], parser: HfArgumentParser) -> NoReturn:
    word = next((word for word in rest if word.startswith("-")), rest[0])
    options = sorted(parser._option_string_actions)
    if not word.startswith("-"):
        raise ConfigError(f"{word!r} belongs to no flag; settings are given as --name value")
    near = did_you_mean(word.split("=")[0].replace("-", "_").replace("__", "--", 1), options)
    raise ConfigError(f"unknown flag {word}{near}; train.py --help lists them all")


def _typed_settings(settings: dict[str, Any], parser: HfArgumentParser, path: str) -> dict[str, Any]:
    """The values of a run file, checked and converted as the command line's are."""
    actions = {
        option[2:]: action for option, action in parser._option_string_actions.items() if option.startswith("--")
    }
    hints = {name: hint for kind in _DATACLASSES for name, hint in get_type_hints(kind).items()}
    typed = {}
    for key, value in settings.items():
        if key in ("config", "help") or key not in actions:
            raise ConfigError(f"{path}: unknown key {key!r}{did_you_mean(key, sorted(hints))}; keys are flag names")
        action = actions[key]
        # HfArgumentParser adds a flag --no_NAME for every one that is true by default.
        negated = key.startswith("no_") and action.dest != key
        result = _typed_value(value, action, bool if negated else hints[action.dest], f"{path}: {key}")
        typed[action.dest] = (not result) if negated else result
    return typed


def _typed_value(value: Any, action: Action, hint: Any, where: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    origins = [get_origin(kind) or kind for kind in kinds]
    if value is None and types.NoneType in origins:
        return None
    if isinstance(value, dict) and action.dest == "model_overrides":
        # JSON is YAML, and fits on one line.
        return [f"{key}={json.dumps(part)}" for key, part in value.items()]
    if (isinstance(value, dict) and dict in origins) or (isinstance(value, list) and list in origins):
        return [str(part) for part in value] if isinstance(value, list) else value
    if value is None or isinstance(value, (dict, list)):
        raise ConfigError(f"{where} is {value!r}; allowed: {_kind_words(kinds)}")
    if bool in origins:
        words = {"true": True, "false": False}
        if str(value).lower() not in words:
            raise ConfigError(f"{where} is {value!r}; allowed: true or false")
        return words[str(value).lower()]
    try:
        # As text, the way the command line gives it, so that both are read by the same rules.
        converted = action.type(str(value)) if callable(action.type) else value
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where} is {value!r}; allowed: {_kind_words(kinds)}") from error
    if action.choices is not None and converted not in action.choices:
        raise ConfigError(
            f"{where} is {value!r}; allowed: {', '.join(map(str, action.choices))}"
            f"{did_you_mean(str(value), [str(choice) for choice in action.choices])}"
        )
    return [converted] if action.nargs == "+" else converted


def _kind_words(kinds: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", str: "a word", list: "a list", dict: "a mapping"}
    return " or ".join(
        dict.fromkeys(words.get(get_origin(kind) or kind, str(kind)) for kind in kinds if kind is not types.NoneType)
    )
