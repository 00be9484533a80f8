"""The flags of a training run beside transformers' own."""

import copy
import json

import pytest
from transformers import (
    HfArgumentParser,
)

from moe_hf.base.errors import ConfigError
from moe_hf.training.training_arguments import MoETrainingArguments


def test_every_flag_parses_beside_our_own():
    parser = HfArgumentParser(MoETrainingArguments)
    words = "--output_dir x --optim moe_muon --muon_learning_rate 0.05 --weight_decay 0.1 --peak_flops 1e12 --use_cpu"
    (args,) = parser.parse_args_into_dataclasses(words.split())
    assert (args.optim, args.muon_learning_rate, args.weight_decay, args.peak_flops) == ("moe_muon", 0.05, 0.1, 1e12)
    assert json.loads(args.to_json_string())["optim"] == "moe_muon"
    assert copy.deepcopy(args).optim == "moe_muon"


def test_defaults_of_the_project(tmp_path):
    args = MoETrainingArguments(output_dir=str(tmp_path), seed=7, use_cpu=True)
    assert args.optim == "adamw_torch_fused"
    assert (args.logging_steps, args.save_total_limit, args.report_to, args.data_seed) == (25, 2, [], 7)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"optim": "moe_moun"}, "optim 'moe_moun' is unknown; did you mean 'moe_muon'"),
        ({"muon_learning_rate": 0.0}, "muon_learning_rate must be > 0"),
        ({"peak_flops": -1.0}, "peak_flops must be > 0"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
        ({"save_steps": 0, "save_strategy": "steps"}, "save_steps must be > 0, got 0"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be at least 0, got nan"),
        ({"neftune_noise_alpha": float("nan")}, "neftune_noise_alpha must be a finite number, got nan"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs must be a finite number, got nan"),
        ({"num_train_epochs": float("-inf")}, "num_train_epochs must be a finite number, got -inf"),
        ({"eval_delay": float("nan")}, "eval_delay must be a finite number, got nan"),
    ],
)
def test_wrong_values_are_config_errors(tmp_path, wrong, text):
    with pytest.raises(ConfigError, match=text):
        MoETrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


@pytest.mark.parametrize(
    "given",
    [
        {"max_grad_norm": float("inf")},
        {"logging_steps": 0, "logging_strategy": "no"},
        {"save_steps": 0, "save_strategy": "no"},
        {"save_steps": -1, "save_strategy": "epoch"},
        {"eval_steps": 0, "eval_strategy": "no"},
        {"save_total_limit": -1},
        {"eval_delay": -1},
        {"num_train_epochs": -1.0, "max_steps": 5},
    ],
)
def test_what_means_something_to_transformers_or_is_not_looked_at_is_taken(tmp_path, given):
    args = MoETrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
    assert {name: getattr(args, name) for name in given} == given
