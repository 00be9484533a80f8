"""The tokenizer of a run is the one that was asked for, or trained on the data."""

import datasets
import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.rows import Rows
from moe_hf.training.data.tokenizer_choice import choose_tokenizer
from tests.training.data.samples import CHATS


def test_a_tokenizer_can_be_trained_on_the_data_or_loaded(tmp_path):
    rows = Rows(datasets.Dataset.from_dict({"text": ["banana banana"] * 50}), "text", "bananas")
    trained = choose_tokenizer(DataArguments(tokenizer="bpe", vocab_size=270), rows, 64)
    assert len(trained("banana").input_ids) < len("banana")
    trained.save_pretrained(tmp_path)
    loaded = choose_tokenizer(DataArguments(tokenizer=str(tmp_path)), rows, 64)
    assert loaded("banana").input_ids == trained("banana").input_ids


def test_the_chat_template_can_be_replaced(tmp_path):
    rows = Rows(datasets.Dataset.from_dict({"text": ["a"]}), "text", "a")
    file = tmp_path / "template.jinja"
    file.write_text("{{ 'hello' }}", encoding="utf-8")
    tokenizer = choose_tokenizer(DataArguments(tokenizer="byte", chat_template=str(file)), rows, 64)
    assert tokenizer.apply_chat_template(CHATS[0], tokenize=False) == "hello"
    with pytest.raises(ConfigError, match="no such file"):
        choose_tokenizer(DataArguments(tokenizer="byte", chat_template="nowhere"), rows, 64)
    with pytest.raises(ConfigError, match="no tokenizer can be loaded"):
        choose_tokenizer(DataArguments(tokenizer=str(tmp_path / "nothing")), rows, 64)


def test_a_model_of_plain_text_says_so_by_having_no_chat_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    for kind, rows in (("text", [{"text": "a b"}] * 4), ("messages", [{"messages": CHATS[0]}] * 4)):
        data = Rows(datasets.Dataset.from_list(rows), kind, "data")
        for name in ("word", str(tmp_path / "saved")):
            fresh = choose_tokenizer(DataArguments(tokenizer=name), data, 64)
            assert bool(fresh.chat_template) == (kind == "messages")
        asked = choose_tokenizer(DataArguments(tokenizer="byte", chat_template="moe_hf"), data, 64)
        continued = choose_tokenizer(DataArguments(), data, 64, starting_model=str(tmp_path / "saved"))
        assert asked.chat_template
        assert continued.chat_template
