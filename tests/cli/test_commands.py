"""`moe-hf`, its `info` and `upcycle` commands, and how errors reach the person who typed."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.__main__ import COMMANDS, main
from moe_hf.cli.overrides import layer_pattern
from moe_hf.config.presets import create_moe_config


def test_no_command_prints_all_commands_and_fails(capsys):
    assert main([]) == 2
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_unknown_command_names_the_nearest(capsys):
    assert main(["inof"]) == 2
    assert "did you mean 'info'?" in capsys.readouterr().err


def test_info_prints_the_true_totals(capsys):
    assert main(["info", "500m", "--num_experts", "32"]) == 0
    text = capsys.readouterr().out
    assert "1194.2M parameters, 187.0M active" in text
    assert "6.2%" in text


def test_info_as_json_is_one_object(capsys):
    assert main(["info", "1b", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert round(info["total_params_m"], 1) == 1482.1
    assert info["expert_utilization"] == "12.5%"


def test_info_says_of_a_dense_model_that_it_is_dense(tmp_path, capsys):
    GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=8).save_pretrained(tmp_path / "gpt2")
    twin = create_moe_config("tiny")
    twin.make_dense()
    twin.save_pretrained(tmp_path / "twin")
    for name, words in (("gpt2", "a dense gpt2"), ("twin", "a dense model")):
        assert main(["info", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert words in " ".join(out.split())
        assert "experts  " not in out
        assert "active_fraction" not in out
    assert main(["info", str(tmp_path / "gpt2"), "--num_experts", "4"]) == 0
    assert "made of the dense gpt2" in " ".join(capsys.readouterr().out.split())


def test_info_takes_a_layer_pattern(capsys):
    assert main(["info", "500m", "--json", "--mlp_layer_types", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["moe_layers"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "50m"], "unknown model size '50m'"),
        (["info", "500m", "--num_experts_per_tok", "99"], "num_experts_per_tok=99"),
        (["info", "500m", "--mlp_layer_types", "spares"], "mlp_layer_types='spares'"),
        (["info", "./nowhere"], "there is no folder ./nowhere"),
        (["upcycle", "./nowhere", "./there"], "there is no folder ./nowhere"),
        (["upcycle", "./nowhere", "./there", "--mlp_layer_types", "all"], "there is no folder ./nowhere"),
        (["chat", "-p", "hi", "--model", "./nowhere"], "there is no folder ./nowhere"),
        (["train", "--model", "./nowhere"], "there is no folder ./nowhere"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_a_code_of_2(capsys, words, message):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_upcycle_writes_a_folder_that_info_reads(tmp_path, capsys):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=16, n_layer=3, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "dense")
    words = [
        "upcycle",
        str(tmp_path / "dense"),
        str(tmp_path / "moe"),
        "--num_experts",
        "4",
        "--norm_topk_prob",
        "true",
    ]
    assert main([*words, "--mlp_layer_types", "dense,sparse,dense", "--expert_init", "drop"]) == 0
    assert "moe-hf chat --model" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "moe"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["moe_layers"], info["num_experts"]) == (1, 4)


def test_layer_pattern_none_is_the_dense_twin():
    assert layer_pattern("none", 2) == ["dense", "dense"]


def test_info_of_an_evil_folder_does_not_steer_the_terminal(tmp_path, capsys):
    folder = tmp_path / "o2[/x]\x1b[2J"
    create_moe_config("tiny", num_hidden_layers=2, vocab_size=50).save_pretrained(folder)
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "o2[/x][2J" in shown
    assert "\x1b[2J" not in shown
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "bad\x1b[2J\x9b"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["info", str(folder)]) == 2
    assert not {"\x1b", "\x9b"} & set(capsys.readouterr().err)
