"""Arguments of a run know what they stand for, and refuse what does not go together."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.runs.arguments import ModelArguments, RunArguments
from moe_hf.training.runs.settings import parse_arguments


def test_the_commands_of_the_readme_parse():
    settings = parse_arguments("--architecture moe --moe_size 500m --num_experts 16".split())
    assert (settings.model.architecture, settings.model.num_experts) == ("moe", 16)
    assert not parse_arguments(["--no_flash_attention"]).model.flash_attention
    assert parse_arguments(["--architecture", "dense"]).model.architecture == "dense"
    assert parse_arguments([]).run.resume == "auto"


@pytest.mark.parametrize(
    ("fields", "family", "is_dense", "kind"),
    [
        ({}, "gpt2", False, "moe"),
        ({"architecture": "dense"}, "gpt2", True, "dense"),
        ({"dense_twin": True}, "gpt2", True, "dense"),
        ({"architecture": "retnet"}, "retnet", False, "retnet"),
        (
            {"architecture": "mamba*3, attention", "dense_twin": True},
            "mamba*3, attention",
            True,
            "mamba3-attention-dense",
        ),
    ],
)
def test_an_architecture_is_a_family_dense_or_not_and_a_part_of_a_folders_name(fields, family, is_dense, kind):
    arguments = ModelArguments(**fields)
    assert (arguments.family, arguments.is_dense, arguments.kind) == (family, is_dense, kind)


@pytest.mark.parametrize(
    ("part", "fields", "words"),
    [
        (ModelArguments, {"model": "a", "num_experts": 4}, "--model a keeps its shape"),
        (ModelArguments, {"upcycle": "a", "architecture": "mamba"}, "drop --architecture mamba"),
        (ModelArguments, {"router_init": "zero"}, "--upcycle as well"),
        (RunArguments, {"questions_per_skill": -1}, "--questions_per_skill must be at least 0, got -1"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_values(part, fields, words):
    with pytest.raises(ConfigError) as error:
        part(**fields)
    assert words in str(error.value)
