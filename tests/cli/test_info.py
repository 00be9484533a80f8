"""`moe-hf info` counts what a size or a folder holds, and says so safely."""

import json

from transformers import GPT2Config, LlamaConfig

from moe_hf.__main__ import main
from moe_hf.config.presets import create_moe_config


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


def test_info_of_a_dense_model_that_becomes_another_class_s_tells_of_the_dense_model(tmp_path, capsys):
    LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32).save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "a dense model" in " ".join(out.split())
    assert "experts  " not in out
    assert main(["info", str(tmp_path), "--num_experts", "4"]) == 2
    assert "num_experts=4 can't be chosen" in capsys.readouterr().err


def test_info_takes_a_layer_pattern(capsys):
    assert main(["info", "500m", "--json", "--mlp_layer_types", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["moe_layers"] == 8


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
