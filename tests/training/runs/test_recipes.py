"""Each size has its recipe, and what a flag makes wrong is left out of it."""

import pytest

from moe_hf.training.runs.recipes import RECIPES, training_recipe
from moe_hf.training.runs.run_file import read_run_file
from moe_hf.training.runs.settings import all_settings, parse_arguments


def test_the_recipe_of_the_size_fills_what_is_not_given():
    settings = parse_arguments(["--moe_size", "1b"])
    assert settings.training.learning_rate == RECIPES["1b"]["learning_rate"]
    assert settings.data.vocab_size == 50257


@pytest.mark.parametrize("size", ["tiny", "500m"])
def test_megabyte_reads_bytes_whatever_its_size(size):
    settings = parse_arguments(["--architecture", "megabyte", "--moe_size", size])
    assert (settings.data.tokenizer, settings.data.vocab_size) == ("byte", None)
    assert settings.data.context_length == (1024 if size == "tiny" else None)
    assert parse_arguments(["--architecture", "retnet"]).data.tokenizer == "word"


def test_a_number_of_epochs_replaces_the_recipes_number_of_steps():
    assert "max_steps" in RECIPES["500m"]
    assert parse_arguments(["--moe_size", "500m", "--num_train_epochs", "2"]).training.max_steps == -1


def test_another_optimizer_does_not_inherit_rates_that_were_tuned_for_the_recipes():
    tuned = training_recipe({})
    other = training_recipe({"optim": "adafactor"})
    assert tuned["learning_rate"] != other["learning_rate"]
    assert "weight_decay" not in other


@pytest.mark.parametrize("size", list(RECIPES))
def test_the_run_file_of_each_size_mirrors_its_recipe(size, request):
    path = request.config.rootpath / "configs" / f"{size}.yaml"
    assert read_run_file(path) == {"moe_size": size, **RECIPES[size]}
    assert path.read_text(encoding="utf-8").startswith("# Trains ")
    assert all_settings(parse_arguments(["--config", str(path)])) == all_settings(parse_arguments(["--moe_size", size]))
