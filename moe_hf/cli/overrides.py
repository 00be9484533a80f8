"""Command-line flags for the fields of a configuration, made from the configuration's own annotations."""

import argparse
from typing import Any, get_args

from moe_hf.base.errors import ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig


def add_config_flags(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Add a flag `--name` for each named field of `GPT2WithMoEConfig`; absent flags stay out of the namespace."""
    fields = GPT2WithMoEConfig.__dataclass_fields__
    group = parser.add_argument_group("configuration", "fields of GPT2WithMoEConfig; see its help for their meaning")
    for name in names:
        kinds = get_args(fields[name].type) or (fields[name].type,)
        group.add_argument(
            f"--{name}",
            type=_reader(name, kinds),
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"default {fields[name].default!r}",
        )


def given_config_fields(namespace: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """The fields that were given on the command line."""
    return {name: value for name, value in vars(namespace).items() if name in names}


def layer_pattern(word: str, num_layers: int) -> list[str]:
    """The FFN of each layer from "alternate", "all", "none", or a comma-separated list of sparse and dense.

    >>> layer_pattern("alternate", 3)
    ['sparse', 'dense', 'sparse']

    Raises:
        ConfigError: another word.
    """
    known = {
        "alternate": ["dense" if i % 2 else "sparse" for i in range(num_layers)],
        "all": ["sparse"] * num_layers,
        "none": ["dense"] * num_layers,
    }
    if word in known:
        return known[word]
    parts = [part.strip() for part in word.split(",")]
    if not set(parts) <= {"sparse", "dense"}:
        raise ConfigError(
            f"mlp_layer_types={word!r} is not allowed; it must be alternate, all, none, or sparse and dense separated "
            "by commas"
        )
    return parts


def _reader(name: str, kinds: tuple[Any, ...]) -> Any:
    def read(text: str) -> Any:
        if bool in kinds:
            if text.lower() not in ("true", "false"):
                raise argparse.ArgumentTypeError(f"{name} must be true or false, got {text!r}")
            return text.lower() == "true"
        # int first: a whole number for a field that takes both stays one.
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    continue
        if str in kinds or any(get_args(kind) for kind in kinds):
            return text
        raise argparse.ArgumentTypeError(f"{name} must be a number, got {text!r}")

    return read
