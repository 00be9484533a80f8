"""What can't work is refused with a word on what to do."""

import shlex

import pytest

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.training.runs import checks
from moe_hf.training.runs.settings import parse_arguments, resolve_settings


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
        (["--num_train_epochs", "inf"], "--num_train_epochs must be a finite number, got inf"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(argv, words):
    with pytest.raises(ConfigError) as error:
        parse_arguments(argv)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            "--fsdp full_shard",
            "--fsdp full_shard shards a model over several processes, but there is 1: start the run with torchrun, or "
            "leave it out",
        ),
        ("--model x --num_experts 4", "--model x keeps its shape: drop --num_experts 4"),
        (
            "--model x --dense_twin --router_type hash --model_overrides a=1 b=2",
            "--model x keeps its shape: drop --dense_twin, --router_type hash and --model_overrides a=1 b=2",
        ),
        (
            "--expert_init copy",
            "--expert_init copy: only --upcycle makes experts of a dense model; give --upcycle as well",
        ),
        (
            "--expert_init copy --router_init zero",
            "--expert_init copy and --router_init zero: only --upcycle makes experts of a dense model; give --upcycle "
            "as well",
        ),
        ("--push_to_hub", "--push_to_hub needs a token of the hub: log in with `hf auth login`, or give --hub_token"),
        ("--data_split=", "--data_split must not be empty, got ''; leave it out for its default"),
        ("--data a.txt ''", "--data must not be empty, got a.txt ''; leave it out for its default"),
        (
            "--text_column messages",
            "--text_column messages: plain text and conversations are both 'messages' then; a column holds one kind",
        ),
        (
            "--max_steps 0",
            "--max_steps 0 trains nothing; give --max_steps 1 or more, or leave it out (or at -1) and give "
            "--num_train_epochs above 0",
        ),
        (
            "--num_train_epochs 0",
            "--num_train_epochs 0 trains nothing; give --max_steps 1 or more, or leave it out (or at -1) and give "
            "--num_train_epochs above 0",
        ),
        ("--streaming", "--streaming: a stream has no end that is known beforehand; give --max_steps 1 or more"),
        (
            "--streaming --max_steps -1",
            "--streaming and --max_steps -1: a stream has no end that is known beforehand; give --max_steps 1 or more",
        ),
        (
            "--save_strategy best",
            "--save_strategy best needs to know what is best: give --metric_for_best_model loss as well",
        ),
    ],
)
def test_a_message_names_only_flags_that_were_given_as_they_were_typed(argv, text, monkeypatch):
    monkeypatch.setattr(checks, "get_token", lambda: None)
    with pytest.raises(ConfigError) as error:
        parse_arguments(shlex.split(argv))
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        ("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr"),
        ("""--lr_scheduler_kwargs '{"speed": 1}'""", """--lr_scheduler_kwargs '{"speed": 1}'"""),
        ("--moe_size 500m --optim_args fast", "--optim_args fast"),
    ],
)
def test_what_a_library_refuses_is_told_of_the_flags_that_were_given(argv, flags):
    with pytest.raises(ConfigError) as error:
        parse_arguments(shlex.split(argv))
    assert str(error.value).startswith(f"{flags} can't be used: ")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"report_to": "wandbb"}, ConfigError, "did you mean 'wandb'"),
        (
            {"optim": "adamw_torch", "learning_rate": 0.5},
            ConfigError,
            "--learning_rate 0.5 is far above what adamw_torch",
        ),
        ({"muon_learning_rate": 2.0}, ConfigError, "--muon_learning_rate 2 is far above what the Muon part"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ConfigError, "--lr_scheduler_type cosine_with_min_lr"),
        ({"metric_for_best_model": "accuracy"}, ConfigError, "--metric_for_best_model accuracy"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c", "hub_token": "x"}, ConfigError, "--hub_model_id 'a/b/c'"),
        ({"optim": "adamw_bnb_8bit"}, BackendUnavailableError, "--optim adamw_bnb_8bit"),
    ],
)
def test_settings_that_the_machine_or_a_library_refuses_are_named(given, error, words):
    with pytest.raises(error) as caught:
        resolve_settings(given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rate_far_too_high_can_be_insisted_on():
    settings = resolve_settings({"learning_rate": 3.0, "allow_any_learning_rate": True})
    assert settings.training.learning_rate == 3.0
