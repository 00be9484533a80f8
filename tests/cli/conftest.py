"""A saved model that babbles, and what stands on stdin."""

import io
import string
import sys

import pytest
import torch

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.text.tokenizers import byte_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A model with random weights, which babbles until it is stopped."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    shape |= {"moe_intermediate_size": 16, "mlp_layer_types": ["sparse", "dense"], "max_position_embeddings": 4096}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    folder = tmp_path_factory.mktemp("runs") / "first"
    model = GPT2WithMoE(create_moe_config("tiny", vocab_size=len(tokenizer), **shape, **ids))
    # Whatever the weights say, it is letters: none ends the answer, and each shows.
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_lowercase))
    model.generation_config.suppress_tokens = sorted(set(range(model.config.vocab_size)) - set(letters))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def stdin(monkeypatch):
    """Sets what stands on stdin, which is no terminal."""

    def set_stdin(content: str | bytes):
        raw = content if isinstance(content, bytes) else content.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    set_stdin("")
    return set_stdin
