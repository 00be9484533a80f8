"""Reads and writes run files: the YAML form of a training run's flags."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from moe_hf.base.errors import ConfigError
from moe_hf.base.files import atomic_file


class RunFileDumper(yaml.SafeDumper):
    """Writes YAML that `RunFileLoader` reads back equal."""


class RunFileLoader(yaml.SafeLoader):
    """YAML 1.2's words: only true and false are booleans, `1e-4` is a number, and a repeated key is an error.

    YAML 1.1, PyYAML's own, reads `save_strategy: no` as False and `learning_rate: 1e-4` as text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping at `node`.

        Raises:
            ConfigError: a key occurs twice.
        """
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(f"the key {repeated[0]!r} stands twice (line {node.start_mark.line + 1} on); keep one")
        return super().construct_mapping(node, deep=deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
RunFileLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RunFileLoader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
RunFileLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$"
    ),
    list("-+0123456789."),
)
# By this table the dumper tells what needs quotes: by PyYAML's own, the text "1e-4" would come back as a number.
RunFileDumper.yaml_implicit_resolvers = RunFileLoader.yaml_implicit_resolvers


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML.
        where: what the text is, as it stands at the head of an error.

    Raises:
        ConfigError: it is not YAML.

    >>> parse_yaml("{learning_rate: 1e-4, save_strategy: no}", "example")
    {'learning_rate': 0.0001, 'save_strategy': 'no'}
    """
    try:
        return yaml.load(text, Loader=RunFileLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    # Beside its own errors PyYAML lets through those of dates and numbers that are none, and of a nesting too deep.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}; mend it") from error


def read_run_file(path: str | Path) -> dict[str, Any]:
    """The settings in a run file, by flag name without the dashes at its head.

    Raises:
        ConfigError: the file is absent, is not YAML, or is not a mapping from names to values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--config {path}: there is no such file; give a YAML file of flag names and values")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    settings = parse_yaml(text, str(path))
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{path} must hold lines of the form `flag_name: value`")
    return {key.lstrip("-").replace("-", "_"): value for key, value in settings.items()}


def write_run_file(path: str | Path, settings: Mapping[str, Any], headline: str) -> None:
    """Write settings as a run file that `--config` reads back to equal values.

    Args:
        path: the file; replaced if it is there.
        settings: flag name to value.
        headline: one line about the run, written as a comment.
    """
    text = yaml.dump(dict(settings), Dumper=RunFileDumper, sort_keys=False, allow_unicode=True, width=110)
    with atomic_file(path) as aside:
        aside.write_text(f"# {headline}\n{text}", encoding="utf-8")
