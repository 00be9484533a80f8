"""A command line, a run file and a recipe become the settings of one run."""

import dataclasses

import pytest
from transformers import TrainingArguments

from moe_hf.base.errors import ConfigError
from moe_hf.training.runs.recipes import RECIPES
from moe_hf.training.runs.settings import flag_parser, parse_arguments, resolve_settings


def run_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_the_run_file_and_the_run_file_over_the_recipe(tmp_path):
    config = run_file(tmp_path, "learning_rate: 1e-4\nweight_decay: 0.5\n")
    settings = parse_arguments(["--config", config, "--weight_decay", "0.25"])
    assert (settings.training.learning_rate, settings.training.weight_decay) == (1e-4, 0.25)
    assert settings.training.optim == RECIPES["tiny"]["optim"]


def test_every_flag_of_transformers_is_accepted():
    options = flag_parser()._option_string_actions
    for field in dataclasses.fields(TrainingArguments):
        if field.init:
            assert f"--{field.name}" in options


@pytest.mark.parametrize("size", ["tiny", "500m"])
def test_the_help_shows_the_defaults_of_the_size_beside_it(size, capsys, tmp_path):
    config = run_file(tmp_path, "seed: 77\n")
    with pytest.raises(SystemExit) as left:
        parse_arguments(["--moe_size", size, "--config", config, "--help"])
    assert left.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    of_flag = {
        name: out.split(f" --{name} ")[-1].split("(default: ")[1].split(")")[0] for name in ("learning_rate", "seed")
    }
    assert of_flag == {"learning_rate": str(RECIPES[size]["learning_rate"]), "seed": "77"}


@pytest.mark.parametrize("flag", ["--moe_size", "--moe-size"])
def test_underscore_and_dash_are_the_same(flag):
    assert parse_arguments([flag, "500m"]).model.moe_size == "500m"
    assert parse_arguments(["--dry-run"]).run.dry_run
    assert parse_arguments(["--dry_run"]).run.dry_run


def test_settings_can_be_made_without_a_command_line():
    assert resolve_settings({"moe_size": "tiny", "max_steps": 3}).training.max_steps == 3
    with pytest.raises(ConfigError, match="'max_steps'"):
        resolve_settings({"max_step": 3})
