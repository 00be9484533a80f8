"""A run file says what flags say, and is read as a person means it."""

import pytest
import yaml

from moe_hf.base.errors import ConfigError
from moe_hf.training.runs.run_file import RunFileDumper, parse_yaml, write_run_file
from moe_hf.training.runs.settings import all_settings, parse_arguments


def run_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", "'learning_rate'"),
        ("learning_rate: fast", "a number"),
        ("max_steps: 2.5", "a whole number"),
        ("max_steps: true", "a whole number"),
        ("bf16: perhaps", "true or false"),
        ("packing: eso", "'eos'"),
        ("data: {a: 1}", "a list"),
        ("seed: null", "a whole number"),
        ("seed: 1\nseed: 2", "twice"),
        ("- seed", "flag_name: value"),
        ("seed: [1", "YAML"),
    ],
)
def test_a_wrong_run_file_names_file_key_and_what_is_allowed(tmp_path, text, words):
    with pytest.raises(ConfigError) as error:
        parse_arguments(["--config", run_file(tmp_path, text)])
    assert words in str(error.value)
    assert "run.yaml" in str(error.value)


def test_a_run_file_reads_words_as_a_person_means_them(tmp_path):
    text = "save_strategy: no\nlearning_rate: 1e-4\nno_flash_attention: true\nmodel-overrides: {hidden_size: 32}\n"
    text += "data: [a.txt, b.txt]\nlr_scheduler_kwargs: {min_lr: 1e-5}\nlr_scheduler_type: cosine_with_min_lr\n"
    settings = parse_arguments(["--config", run_file(tmp_path, text)])
    assert settings.training.save_strategy == "no"
    assert settings.training.learning_rate == 1e-4
    assert not settings.model.flash_attention
    assert settings.model.model_overrides == ["hidden_size=32"]
    assert settings.data.data == ["a.txt", "b.txt"]
    assert settings.training.lr_scheduler_kwargs == {"min_lr": 1e-5}


@pytest.mark.parametrize("word", ["inf", ".inf", "+.inf", ".Inf", ".INF"])
def test_infinity_is_read_as_yaml_spells_it_and_as_the_command_line_does(tmp_path, word):
    settings = parse_arguments(["--config", run_file(tmp_path, f"max_grad_norm: {word}\n")])
    assert settings.training.max_grad_norm == float("inf")
    write_run_file(tmp_path / "again.yaml", all_settings(settings), "a run")
    again = parse_arguments(["--config", str(tmp_path / "again.yaml")])
    assert again.training.max_grad_norm == float("inf")


def test_a_word_in_quotes_stays_a_word(tmp_path):
    text = yaml.dump({"run_name": ".inf", "hub_model_id": ".infinite"}, Dumper=RunFileDumper)
    assert parse_yaml(text, "here") == {"run_name": ".inf", "hub_model_id": ".infinite"}


def test_a_written_run_file_gives_the_same_settings_back(tmp_path):
    argv = "--seed 7 --save_strategy no --optim_args 1e-4 --report_to none --model_overrides hidden_size=32".split()
    settings = parse_arguments([*argv, "--lr_scheduler_kwargs", "{}", "--hub_token", "secret", "--dry_run"])
    path = tmp_path / "run.yaml"
    write_run_file(path, all_settings(settings), "a run")
    again = parse_arguments(["--config", str(path)])
    assert all_settings(again) == all_settings(settings)
    assert again.training.seed == 7
    assert again.training.optim_args == "1e-4"
    assert "secret" not in path.read_text(encoding="utf-8")
    assert not again.run.dry_run
