"""`moe-hf upcycle` writes a folder that is a model."""

import json

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.__main__ import main


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
