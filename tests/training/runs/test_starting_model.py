"""A run starts from models of transformers' own, dense or with experts, as from this package's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    OPTConfig,
    PreTrainedConfig,
    SmolLM3Config,
)

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.runs.arguments import ModelArguments
from moe_hf.training.runs.model_building import model_config
from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments
from tests.models.native_moes import NATIVE_MOES
from tests.models.upcycling.conftest import CONFIGS, save_dense

IDS: dict[str, Any] = {"vocab_size": 264, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
# Weights stand still, so that what is measured is where the run starts.
STILL = "--max_steps 1 --optim sgd --learning_rate 0"


def start(config: PreTrainedConfig, folder: str = "start") -> Path:
    save_dense(config, Path(folder))
    byte_tokenizer().save_pretrained(folder)
    return Path(folder)


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """A file of plain text in the folder in which the run stands."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("".join(f"{i} and {i + 1} make {2 * i + 1}.\n\n" for i in range(200)))
    return Path("text.txt")


def run(words: str) -> Any:
    return train(
        parse_arguments([*words.split(), "--data", "text.txt", "--context_length", "32", "--logging_steps", "1"])
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "granite", "olmo2"])
def test_a_dense_model_that_a_family_could_start_from_stays_what_it_is_unless_asked(tmp_path, kind: str) -> None:
    folder = str(save_dense(CONFIGS[kind](**IDS), tmp_path / "start"))
    dense = model_config(ModelArguments(model=folder))
    assert (dense.model_type, hasattr(dense, "num_experts")) == (kind, False)
    with pytest.raises(ConfigError, match="keeps its shape: drop --model_overrides"):
        model_config(ModelArguments(model=folder, model_overrides=["router_type=hash"]))
    native = model_config(ModelArguments(upcycle=folder, num_experts=4))
    assert native.model_type in ("mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "flex_olmo")


def test_a_dense_model_without_a_class_of_others_becomes_this_package_s_where_experts_are_asked_for(tmp_path) -> None:
    config = SmolLM3Config(
        **{**IDS, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1},
        intermediate_size=24,
    )
    folder = str(save_dense(config, tmp_path / "start"))
    assert model_config(ModelArguments(model=folder)).model_type == "smollm3"
    assert model_config(ModelArguments(upcycle=folder, architecture="dense")).model_type == "smollm3"
    moe = model_config(ModelArguments(upcycle=folder, num_experts=4, router_type="hash"))
    assert (moe.model_type, moe.num_experts, moe.router_type) == ("llama_moe", 4, "hash")
    assert upcycle_directory(folder, tmp_path / "moe", num_experts=4).config.model_type == "llama_moe"


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_a_mixture_of_experts_is_trained_further(text, kind: str) -> None:
    start(NATIVE_MOES[kind](**IDS))
    report = run("--model start --max_steps 3 --output_dir run")
    assert report.plan.info["num_experts"] == 4
    assert report.plan.sparse_layers == ((1,) if kind == "deepseek_v3" else (0, 1))
    model = AutoModelForCausalLM.from_pretrained("run")
    assert report.plan.info["total_params"] == model.num_parameters()
    first, last = (load_file(f"{folder}/model.safetensors") for folder in ("start", "run"))
    assert first.keys() == last.keys()
    assert any(not last[name].equal(value) for name, value in first.items())
    assert "import moe_hf" not in Path("run/README.md").read_text()
    assert Path("run/expert_utilization.png").is_file()


def test_a_dense_model_of_others_becomes_a_native_one_on_the_way(text) -> None:
    start(CONFIGS["llama"](**IDS))
    flags = f"{STILL} --num_experts 4 --num_experts_per_tok 2"
    moe = run(f"--upcycle start --output_dir moe {flags}")
    twin = run(f"--upcycle start --architecture dense --output_dir twin {STILL}")
    assert (AutoConfig.from_pretrained("moe").model_type, AutoConfig.from_pretrained("twin").model_type) == (
        "mixtral",
        "llama",
    )
    assert moe.eval_loss == pytest.approx(twin.eval_loss, abs=1e-5)
    # Asked for, the same file becomes this package's own.
    upcycle_directory("start", "own", target="moe_hf", num_experts=4, mlp_layer_types=["sparse"] * 3)
    own = run(f"--model own --output_dir again {STILL}")
    assert AutoConfig.from_pretrained("again").model_type == "llama_moe"
    assert own.eval_loss == pytest.approx(twin.eval_loss, abs=1e-5)
    # The same as by the command, file by file.
    upcycle_directory("start", "command", num_experts=4)
    state = load_file("moe/model.safetensors")
    assert all(state[name].equal(value) for name, value in load_file("command/model.safetensors").items())


def test_choices_reach_the_experts(text) -> None:
    start(CONFIGS["qwen3"](**IDS))
    words = "--upcycle start --output_dir moe --expert_init noise --router_init zero"
    run(f"{words} {STILL} --model_overrides router_aux_loss_coef=0.25")
    config, state = AutoConfig.from_pretrained("moe"), load_file("moe/model.safetensors")
    assert (config.router_aux_loss_coef, config.num_experts) == (0.25, 8)
    assert state["model.layers.0.mlp.gate.weight"].abs().sum() == 0
    first, second = (state[f"model.layers.0.mlp.experts.{i}.up_proj.weight"] for i in (0, 1))
    assert not first.equal(second)


def test_an_interrupted_run_resumes_to_the_bit(text) -> None:
    start(NATIVE_MOES["mixtral"](**IDS))
    words = "--model start --save_steps 2 --lr_scheduler_type constant --per_device_train_batch_size 2"
    run(f"{words} --max_steps 4 --output_dir whole")
    run(f"{words} --max_steps 2 --output_dir part")
    run(f"{words} --max_steps 4 --output_dir again --resume part/checkpoint-2")
    whole, again = (load_file(f"{folder}/model.safetensors") for folder in ("whole", "again"))
    assert all(again[name].equal(value) for name, value in whole.items())


def test_frozen_routers_stand_still(text) -> None:
    start(NATIVE_MOES["mixtral"](**IDS))
    run("--model start --max_steps 2 --output_dir run --freeze_routers")
    first, last = (load_file(f"{folder}/model.safetensors") for folder in ("start", "run"))
    for name, value in first.items():
        assert last[name].equal(value) == ("block_sparse_moe.gate" in name), name


@pytest.mark.parametrize(
    ("words", "error", "text_"),
    [
        ("--upcycle start --router_type hash", ConfigError, "router_type='hash' has no meaning for .* mixtral"),
        ("--upcycle start --num_experts_per_tok 99", ConfigError, "num_experts_per_tok=99"),
        ("--upcycle moe", CheckpointError, "type 'mixtral', which can't be upcycled exactly"),
        (
            "--upcycle start --architecture dense --num_experts 4",
            ConfigError,
            "num_experts=4 can't be chosen for start",
        ),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_read(text, words: str, error, text_: str) -> None:
    start(CONFIGS["llama"](**IDS))
    start(NATIVE_MOES["mixtral"](**IDS), "moe")
    with pytest.raises(error, match=text_):
        run(f"{words} --output_dir run")
    assert not Path("run").exists()


def test_weights_that_are_missing_are_named(text) -> None:
    from safetensors.torch import save_file

    start(NATIVE_MOES["mixtral"](**IDS))
    state = load_file("start/model.safetensors")
    del state["model.norm.weight"]
    save_file(state, "start/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's tensors, such as model\.norm\.weight"):
        run(f"--model start {STILL} --output_dir run")


def test_a_folder_without_a_configuration_is_refused(tmp_path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=r"config\.json"):
        model_config(ModelArguments(model=str(tmp_path)))


def test_long_rows_and_large_steps_are_asked_for_only(text) -> None:
    start(NATIVE_MOES["mixtral"](**IDS, max_position_embeddings=4096))
    words = ["--model", "start", "--data", "text.txt", "--output_dir", "run", "--max_steps", "1"]
    report = train(parse_arguments(words))
    assert any("rows are 256 tokens long, though the model takes 4,096" in notice for notice in report.notices)
    assert AutoTokenizer.from_pretrained("run").eos_token_id == 0
    assert json.loads(Path("run/config.json").read_text())["max_position_embeddings"] == 4096
    assert torch.isfinite(torch.tensor(report.eval_loss))


def test_what_a_chat_model_says_of_generation_stays(text) -> None:
    start(NATIVE_MOES["mixtral"](**IDS))
    GenerationConfig(eos_token_id=[0, 5], temperature=0.7, do_sample=True, top_p=0.9).save_pretrained("start")
    run(f"--model start {STILL} --output_dir run")
    kept = GenerationConfig.from_pretrained("run")
    assert (kept.eos_token_id, kept.temperature, kept.do_sample, kept.top_p) == ([0, 5], 0.7, True, 0.9)
    assert (kept.pad_token_id, kept.max_new_tokens) == (1, 16)


def test_a_model_without_usual_fields_is_counted_as_well(text) -> None:
    shape = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    start(OPTConfig(**IDS, **shape, word_embed_proj_dim=32))
    assert run(f"--model start {STILL} --output_dir run").plan.info["moe_layers"] == 0
