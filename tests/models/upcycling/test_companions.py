"""A tokenizer is carried over as the dense model means it, in whatever files it is."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from moe_hf.models.upcycling.directory import upcycle_directory

TEMPLATE = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A GPT-2 as the Hub has it: its tokenizer's class, and so its special token, follow from the model's type."""
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=32)).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    letters = [chr(i) for i in range(33, 127)] + [chr(i) for i in range(161, 256) if i != 173]
    letters += [chr(256 + i) for i in range(68)]
    vocab = {token: i for i, token in enumerate([*letters, "he", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))
    return folder


def test_what_the_model_s_type_implied_is_written_down(gpt2: Path) -> None:
    report = upcycle_directory(str(gpt2), gpt2.parent / "moe", num_experts=2)
    tokenizer, dense = AutoTokenizer.from_pretrained(report.folder), AutoTokenizer.from_pretrained(gpt2)
    assert tokenizer.eos_token == dense.eos_token == "<|endoftext|>"
    text = "hello, the héros 12"
    assert tokenizer(text)["input_ids"] == dense(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert {"tokenizer.json", "tokenizer_config.json"} <= {*report.carried}


def test_a_template_and_generation_settings_come_along(gpt2: Path) -> None:
    GenerationConfig(eos_token_id=5, max_new_tokens=7).save_pretrained(gpt2)
    (gpt2 / "chat_template.jinja").write_text(TEMPLATE)
    report = upcycle_directory(str(gpt2), gpt2.parent / "moe", num_experts=2)
    assert AutoTokenizer.from_pretrained(report.folder).chat_template == TEMPLATE
    assert GenerationConfig.from_pretrained(report.folder).max_new_tokens == 7
    assert {"chat_template.jinja", "generation_config.json"} <= {*report.carried}


def test_without_a_tokenizer_there_is_none(gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (gpt2 / name).unlink()
    assert upcycle_directory(str(gpt2), gpt2.parent / "moe", num_experts=2).carried == []
    assert "tokenizer" not in caplog.text


def test_a_tokenizer_that_cannot_be_loaded_is_left_behind(gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer(BPE()).save(str(gpt2 / "tokenizer.json"))
    (gpt2 / "tokenizer.json").write_text("{}")
    assert upcycle_directory(str(gpt2), gpt2.parent / "moe", num_experts=2).carried == []
    assert "is not carried over, since it can't be loaded" in caplog.text


def test_a_folder_of_this_package_may_leave_the_class_to_the_type_too(gpt2: Path) -> None:
    folder = upcycle_directory(str(gpt2), gpt2.parent / "moe", num_experts=2).folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(gpt2 / name, folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer("hello")["input_ids"] == AutoTokenizer.from_pretrained(gpt2)("hello")["input_ids"]
