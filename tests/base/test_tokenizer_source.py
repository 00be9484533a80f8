"""A tokenizer that comes in a GGUF file splits text as the one that it was written from."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from moe_hf.base.model_source import ModelSource
from moe_hf.base.optional import is_available
from moe_hf.base.tokenizer_source import SPLITS, load_tokenizer, split_of
from moe_hf.export.gguf_file import export_gguf
from tests.export.conftest import save_model
from tests.export.test_tokenizer import bpe

TEXTS = ["they're  1234 cats\n\n1. the cat\n\n\n  22 others", "THEY'LL sat99there\t7", "the cat, and the other"]


@pytest.mark.parametrize("split", SPLITS.values())
def test_a_split_is_known_by_its_steps(split: str) -> None:
    assert split_of(json.loads(bpe(split).backend_tokenizer.to_str())) == split


@pytest.mark.skipif(not is_available("gguf"), reason="needs gguf")
@pytest.mark.parametrize("split", SPLITS.values())
def test_it_is_split_as_the_file_says(tmp_path: Path, split: str) -> None:
    tokenizer = bpe(split)
    folder = save_model("llama", tmp_path, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    export_gguf(str(folder), folder / "out.gguf")
    loaded = load_tokenizer(ModelSource(str(folder), "out.gguf"))
    for text in TEXTS:
        assert loaded(text).input_ids == tokenizer(text).input_ids
    loaded.save_pretrained(folder / "again")
    assert AutoTokenizer.from_pretrained(folder / "again")(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
