"""`moe-hf upcycle` writes a folder that is a model."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.__main__ import main
from moe_hf.text.tokenizers import byte_tokenizer


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


def test_the_busiest_experts_of_a_text_become_a_dense_model(tmp_path, capsys):
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    shape |= {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 8}
    GPT2WithMoE(create_moe_config("tiny", vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    (tmp_path / "text.txt").write_text("some words of a text that is read " * 40)
    words = ["upcycle", str(tmp_path / "moe"), str(tmp_path / "dense"), "--target", "dense", "--busiest"]
    data = ["--data", str(tmp_path / "text.txt")]
    for wrong in ([*words, "1"], [*words[:3], *data], [*words[:5], *data], [*words[:3], "--busiest", "1", *data]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "--busiest K, --data FILES and --target dense go together" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "0", *data])
    assert "--busiest must be 1 or more, got 0" in capsys.readouterr().err
    assert main([*words, "2", *data]) == 2
    assert "has dense layers of width 20, and its experts would become FFNs of 32" in capsys.readouterr().err
    assert not (tmp_path / "dense").exists()
    assert main([*words, "1", *data]) == 0
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert (config["mlp_layer_types"], config["hidden_size"]) == (["dense"] * 2, 16)
