"""A byte-level BPE tokenizer is in the file as llama.cpp reads it; others are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_hf.base.errors import CheckpointError
from moe_hf.base.tokenizer_source import SPLITS
from moe_hf.export.gguf_file import export_gguf
from moe_hf.text.tokenizers import byte_tokenizer, train_tokenizer
from tests.export.conftest import ReadBack, SaveModel

TEXTS = ["the cat and the other cat sat there, then they're 1234 cats"] * 5


def bpe(split: str = "smollm") -> PreTrainedTokenizerFast:
    """A trained tokenizer that splits text as llama.cpp's `split` does."""
    tokenizer = train_tokenizer(TEXTS, "bpe", 300)
    steps: list = []
    for step in next(steps for steps, name in SPLITS.items() if name == split):
        if step == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step in ("words", "bytes"):
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == "words"))
        else:
            steps.append(pre_tokenizers.Split(Regex(step), "isolated"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split == "llama-bpe":
        tokenizer.backend_tokenizer.model.ignore_merges = True
    return tokenizer


def export_with(tokenizer: PreTrainedTokenizerBase, folder: Path) -> ReadBack:
    tokenizer.save_pretrained(folder)
    export_gguf(str(folder), folder / "out.gguf", overwrite=True)
    return ReadBack(folder / "out.gguf")


def test_tokens_merges_ids_and_template(saved: SaveModel) -> None:
    tokenizer = bpe()
    tokenizer.add_tokens(["<think>"])
    fields = export_with(tokenizer, saved("mixtral", vocab_size=len(tokenizer) + 3)).fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[-3:] == [f"[PAD{len(tokenizer) + i}]" for i in range(3)]
    control, user_defined, unused = 3, 4, 5
    assert types[: len(tokenizer)] == [control] * 5 + [1] * (len(tokenizer) - 6) + [user_defined]
    assert types[-3:] == [unused] * 3
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [f"{left} {right}" for left, right in merges]
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


def test_a_bos_that_the_tokenizer_adds_is_added_there_too(saved: SaveModel) -> None:
    tokenizer = bpe()
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    fields = export_with(tokenizer, saved("mixtral", vocab_size=320)).fields
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)


def test_an_end_that_the_tokenizer_does_not_name_is_the_models(saved: SaveModel) -> None:
    tokenizer = bpe()
    tokenizer.eos_token = tokenizer.bos_token = None
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder := saved("mixtral", vocab_size=320, eos_token_id=[7, 2]))
    report = export_gguf(str(folder), folder / "out.gguf")
    fields = ReadBack(report.path).fields
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (1, 7)
    assert (fields["tokenizer.chat_template"], fields["tokenizer.chat_templates"]) == ("{{ messages }}", ["tool_use"])
    assert report.notices == []
    tokenizer.save_pretrained(folder := saved("mixtral", "endless", vocab_size=320, eos_token_id=None))
    assert "name a token that ends a text" in export_gguf(str(folder), folder / "out.gguf").notices[0]


def test_what_llama_cpp_does_not_do_is_said(saved: SaveModel) -> None:
    tokenizer = bpe()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(folder := saved("mixtral", vocab_size=320))
    report = export_gguf(str(folder), folder / "out.gguf")
    assert report.tokenizer is not None
    assert report.tokenizer.split == "default"
    assert "no name for: the file says 'default'" in report.notices[0]
    assert "normalizes text first (NFC)" in report.notices[1]


def test_a_model_without_a_tokenizer_is_exported_without(saved: SaveModel) -> None:
    report = export_gguf(str(folder := saved("mixtral")), folder / "out.gguf")
    assert report.tokenizer is None
    assert report.notices == [f"{folder} has no tokenizer, and so the file has none"]
    assert ReadBack(report.path).fields["tokenizer.ggml.model"] == "none"


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (byte_tokenizer, "has no merges"),
        (lambda: train_tokenizer(TEXTS, "word", 300), "has no merges"),
        (lambda: _unigram(), "is a Unigram, which is not written here; only BPE is"),
        (lambda: _whole_words(), r"takes words whole .*\(ignore_merges\), .* not with 'smollm'"),
    ],
)
def test_others_are_refused(tokenizer: Callable[[], PreTrainedTokenizerBase], text: str, saved: SaveModel) -> None:
    with pytest.raises(CheckpointError, match=text):
        export_with(tokenizer(), saved("mixtral", vocab_size=320))


def test_ids_beyond_the_embedding_are_refused(saved: SaveModel) -> None:
    with pytest.raises(CheckpointError, match="gives ids up to 280, but its embedding has 61 rows; resize it"):
        export_with(bpe(), saved("mixtral"))


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=AddedToken("<unk>"))


def _whole_words() -> PreTrainedTokenizerFast:
    tokenizer = bpe()
    tokenizer.backend_tokenizer.model.ignore_merges = True
    return tokenizer
