"""The model of a run is fresh, upcycled or continued, as the arguments say."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments
from tests.training.runs.tiny_runs import same_weights


@pytest.mark.parametrize("source", ["--model nothere", "--model ./nothere", "--upcycle no/such/folder"])
def test_a_start_that_is_no_folder_is_refused_without_the_network(go, source):
    with pytest.raises(CheckpointError, match="there is no folder"):
        train(parse_arguments(source.split()))


def test_the_dense_twin_has_no_experts_and_the_promised_size(finished, go):
    report = go("--architecture dense")
    assert report.model_dir == Path("runs/tiny-dense")
    model = AutoModelForCausalLM.from_pretrained(report.model_dir)
    assert model.config.sparse_layers == []
    assert model.num_parameters() == finished[0].plan.info["dense_twin_params"]
    assert not (report.model_dir / "expert_utilization.png").exists()


@pytest.fixture
def dense():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained("dense")
    byte_tokenizer().save_pretrained("dense")
    return Path("dense")


MEGABYTE = "--architecture megabyte --context_length 64 --max_steps 2 --model_overrides hidden_size=32 patch_size=4"


@pytest.mark.parametrize("dense", [False, True])
def test_megabyte_and_its_dense_twin_train_on_bytes(go, dense):
    report = go(f"--output_dir run {MEGABYTE} {'--dense_twin' if dense else ''}")
    model = AutoModelForCausalLM.from_pretrained(report.model_dir)
    assert sum(parameter.numel() for parameter in model.parameters()) == report.plan.info["total_params"]
    assert any("experts" in name for name, _ in model.named_parameters()) is not dense
    assert report.plan.sparse_layers == (() if dense else (0, 2))


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_megabyte_refuses_a_tokenizer_of_more_than_bytes(go, tokenizer):
    with pytest.raises(ConfigError, match="MegaByte reads bytes"):
        go(f"--output_dir run {MEGABYTE} --tokenizer {tokenizer}")
    assert not Path("run").exists()


def test_upcycling_begins_with_the_dense_models_loss_and_its_tokenizer(dense, go):
    flags = "--tokenizer dense --model_overrides router_jitter_noise=0.0 --learning_rate 0 --max_steps 1 --optim sgd"
    moe = go(f"--upcycle dense --num_experts 4 --num_experts_per_tok 2 --output_dir moe {flags}")
    twin = go(f"--upcycle dense --architecture dense --output_dir twin {flags}")
    assert AutoModelForCausalLM.from_pretrained("moe").config.num_experts == 4
    assert moe.eval_loss == pytest.approx(twin.eval_loss, abs=1e-5)
    assert AutoTokenizer.from_pretrained("moe").get_vocab() == byte_tokenizer().get_vocab()


def test_training_goes_on_from_a_saved_model(finished, go, eval_data):
    argv = ["--model", str(finished[0].model_dir), "--max_steps", "1", "--optim", "sgd", "--learning_rate", "0"]
    argv += ["--num_conversations", "20", "--eval_data", str(eval_data), "--context_length", "64"]
    report = train(parse_arguments([*argv, "--questions_per_skill", "0", "--output_dir", "more"]))
    assert report.eval_loss == pytest.approx(finished[0].eval_loss, abs=1e-6)
    assert same_weights("more", finished[0].model_dir)


def test_training_does_not_go_on_from_a_model_that_lacks_experts(finished, eval_data, tmp_path):
    damaged = Path(shutil.copytree(finished[0].model_dir, tmp_path / "damaged"))
    weights = load_file(damaged / "model.safetensors")
    lost = next(name for name in weights if "experts" in name)
    save_file({name: x for name, x in weights.items() if name != lost}, damaged / "model.safetensors", {"format": "pt"})
    argv = ["--model", str(damaged), "--max_steps", "1", "--num_conversations", "20", "--eval_data", str(eval_data)]
    with pytest.raises(CheckpointError, match=f"lacks 1 of the model's tensors .{lost}"):
        train(parse_arguments([*argv, "--context_length", "64", "--output_dir", "more"]))
