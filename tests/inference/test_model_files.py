import os

import pytest
from transformers import MixtralConfig

from moe_hf import GPT2WithMoEConfig
from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.inference.model_files import has_experts, newest_model


def make_run(folder, written, dense=False, leave_out=()):
    folder.mkdir(parents=True)
    types = ["dense" if dense else "sparse"] * 2
    GPT2WithMoEConfig(num_hidden_layers=2, mlp_layer_types=types).save_pretrained(folder)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
        os.utime(folder / name, (written, written))
    for name in leave_out:
        (folder / name).unlink()
    return folder


def test_the_newest_weights_win_whatever_the_folder_is_called(tmp_path):
    make_run(tmp_path / "z", written=100)
    newest = make_run(tmp_path / "a", written=200)
    make_run(tmp_path / "m", written=150)
    assert newest_model(tmp_path) == newest


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_no_whole_model_does_not_count(tmp_path, missing):
    whole = make_run(tmp_path / "whole", written=100)
    make_run(tmp_path / "part", written=200, leave_out=[missing])
    assert newest_model(tmp_path) == whole


def test_the_architecture_restricts_the_search(tmp_path):
    moe = make_run(tmp_path / "moe", written=100)
    dense = make_run(tmp_path / "dense", written=200, dense=True)
    assert newest_model(tmp_path, "moe") == moe
    assert newest_model(tmp_path, "dense") == dense
    assert newest_model(tmp_path) == dense


def test_a_broken_config_does_not_hide_the_whole_models(tmp_path):
    moe = make_run(tmp_path / "moe", written=100)
    broken = make_run(tmp_path / "broken", written=200)
    (broken / "config.json").write_text("{")
    assert newest_model(tmp_path, "moe") == moe


def test_a_stopped_run_is_found_by_its_checkpoint_and_a_finished_one_by_itself(tmp_path):
    checkpoint = make_run(tmp_path / "stopped" / "checkpoint-5", written=100)
    assert newest_model(tmp_path) == checkpoint
    finished = make_run(tmp_path / "finished", written=300)
    make_run(finished / "checkpoint-9", written=300)
    assert newest_model(tmp_path) == finished


@pytest.mark.parametrize("architecture", [None, "moe", "dense"])
def test_without_a_model_the_error_names_the_command_that_trains_one(tmp_path, architecture):
    command = "python train.py" + (f" --architecture {architecture}" if architecture else "")
    with pytest.raises(CheckpointError, match=command):
        newest_model(tmp_path / "none", architecture)


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="architecture='rnn' is not allowed"):
        newest_model(tmp_path, "rnn")


def test_experts_are_recognised_in_other_families():
    assert has_experts(MixtralConfig())
    assert not has_experts(GPT2WithMoEConfig(num_hidden_layers=1, mlp_layer_types=["dense"]))
