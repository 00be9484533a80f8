import dataclasses

import pytest
from transformers import TrainingArguments

from moe_hf.base.errors import ConfigError
from moe_hf.training.runs.recipes import RECIPES, training_recipe
from moe_hf.training.runs.run_file import read_run_file, write_run_file
from moe_hf.training.runs.settings import all_settings, flag_parser, parse_arguments, resolve_settings


def run_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_win_over_the_run_file_and_the_run_file_over_the_recipe(tmp_path):
    config = run_file(tmp_path, "learning_rate: 1e-4\nweight_decay: 0.5\n")
    settings = parse_arguments(["--config", config, "--weight_decay", "0.25"])
    assert (settings.training.learning_rate, settings.training.weight_decay) == (1e-4, 0.25)
    assert settings.training.optim == RECIPES["tiny"]["optim"]


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


def test_the_commands_of_the_readme_parse():
    settings = parse_arguments("--architecture moe --moe_size 500m --num_experts 16".split())
    assert (settings.model.architecture, settings.model.num_experts) == ("moe", 16)
    assert not parse_arguments(["--no_flash_attention"]).model.flash_attention
    assert parse_arguments(["--architecture", "dense"]).model.architecture == "dense"
    assert parse_arguments([]).run.resume == "auto"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learning-rte", "1"], "--learning_rate"),
        (["--moe_siz=tiny"], "--moe_size"),
        (["--moe_size", "500"], "500m"),
        (["--architecture", "mambo"], "did you mean 'mamba'"),
        (["--learning_rate", "fast"], "fast"),
        (["--optim", "moe_moun"], "moe_muon"),
        (["tiny"], "tiny"),
        (["--streaming"], "--max_steps"),
        (["--streaming", "--max_steps", "5", "--dataloader_num_workers", "2"], "num_workers"),
        (["--model", "a", "--upcycle", "b"], "one of the two"),
        (["--upcycle", "b", "--moe_size", "tiny"], "--moe_size"),
        (["--expert_init", "noise"], "--upcycle"),
        (["--eval_fraction", "1.5"], "at least 0 and below 1"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--num_experts"], "num_experts"),
        (["--attn_implementation", "flash_attention2"], "did you mean 'flash_attention_2'?"),
        (["--experts_implementation", "nonsense"], "eager, batched_mm, grouped_mm"),
        (["--per_device_train_batch_size", "0"], "at least 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "at least 1, got 0"),
        (["--max_steps", "0", "--num_train_epochs", "0"], "trains nothing"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(argv, words):
    with pytest.raises(ConfigError) as error:
        parse_arguments(argv)
    assert words in str(error.value)


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


def test_settings_can_be_made_without_a_command_line():
    assert resolve_settings({"moe_size": "tiny", "max_steps": 3}).training.max_steps == 3
    with pytest.raises(ConfigError, match="'max_steps'"):
        resolve_settings({"max_step": 3})


@pytest.mark.parametrize("size", list(RECIPES))
def test_the_run_file_of_each_size_mirrors_its_recipe(size, request):
    path = request.config.rootpath / "configs" / f"{size}.yaml"
    assert read_run_file(path) == {"moe_size": size, **RECIPES[size]}
    assert path.read_text(encoding="utf-8").startswith("# Trains ")
    assert all_settings(parse_arguments(["--config", str(path)])) == all_settings(parse_arguments(["--moe_size", size]))
