"""A model's folder as training leaves it: shards, tokenizer, chat template, generation settings, pictures."""

import shutil
from pathlib import Path

import pytest
import torch

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.text.tokenizers import byte_tokenizer


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    shape |= {"moe_intermediate_size": 16, "mlp_layer_types": ["sparse", "dense"], "max_position_embeddings": 64}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = GPT2WithMoE(create_moe_config("tiny", vocab_size=len(tokenizer), **shape, **ids))
    model.generation_config.max_new_tokens = 7
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder, max_shard_size="12KB")
    tokenizer.save_pretrained(folder)
    (folder / "expert_utilization.png").write_bytes(b"a picture")
    return folder


@pytest.fixture
def folder(saved_model, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "moe"))
