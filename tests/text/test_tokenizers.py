"""Every kind of tokenizer gives back any text, keeps its special tokens through a save, and masks answers exactly."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moe_hf.base.errors import ConfigError
from moe_hf.text.tokenizers import KINDS, SPECIAL_TOKENS, byte_tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "the year 1234", "don't stop the cat"] * 3
STRANGE = (
    "",
    " ",
    "  two  spaces, and a\ttab\r\n\n ",
    "naïve café — “quotes”",
    "日本語のテキスト",
    "العربية עברית हिन्दी",
    "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\ufeff\x00\x7f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 1234567890 ½ ٣٤",
    "the cat's  the",
)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, kind=request.param, vocab_size=300)


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_comes_back_exactly(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_saved_tokenizer_is_the_same_when_loaded_by_auto_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.padding_side == "left"
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 0, 1)
    for text in STRANGE:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_special_tokens_are_one_id_each_and_dropped_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("".join(SPECIAL_TOKENS))["input_ids"] == list(range(len(SPECIAL_TOKENS)))
    ids = tokenizer("<|user|>hi<|assistant|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"


def test_padding_goes_to_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["the cat sat", "12"], padding=True)
    assert batch["input_ids"][1][0] == tokenizer.pad_token_id
    assert batch["attention_mask"][1][0] == 0
    assert batch["attention_mask"][1][-1] == 1


def test_a_vocabulary_word_is_one_token_and_a_rare_word_falls_into_bytes() -> None:
    tokenizer = train_tokenizer(TEXTS, kind="word", vocab_size=300)
    assert tokenizer.tokenize("sat on the cat") == ["s", "a", "t", "Ġon", "Ġthe", "Ġcat"]
    assert tokenizer.tokenize(" cats") == ["Ġ", "c", "a", "t", "s"]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_digits_stay_single(kind: str) -> None:
    tokenizer = train_tokenizer(["in 1234 and 1234"] * 9, kind=kind, vocab_size=300)
    assert [token for token in tokenizer.tokenize("1234 and 56") if token[-1].isdigit()] == list("123456")


def test_a_single_letter_is_the_same_symbol_wherever_it_stands() -> None:
    tokenizer = train_tokenizer(["how many r are in r"] * 9, kind="word", vocab_size=300)
    assert tokenizer.tokenize("a r b") == ["a", "Ġ", "r", "Ġ", "b"]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_training_twice_gives_the_same_vocabulary_within_its_size(kind: str) -> None:
    first, second = (train_tokenizer(iter(TEXTS), kind=kind, vocab_size=270) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) == 270


def test_word_vocabulary_holds_the_most_frequent_words() -> None:
    vocabulary = train_tokenizer(TEXTS, kind="word", vocab_size=264).get_vocab()
    assert {"Ġthe", "the", "Ġcat"} <= set(vocabulary)


def test_the_byte_tokenizer_has_one_id_per_byte() -> None:
    tokenizer = byte_tokenizer(model_max_length=64)
    assert len(tokenizer) == 256 + len(SPECIAL_TOKENS)
    assert len(tokenizer("日本")["input_ids"]) == len("日本".encode())
    assert tokenizer.model_max_length == 64


def test_wrong_kind_and_too_small_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"word, bpe, byte.*'wrod'"):
        train_tokenizer(TEXTS, kind="wrod")
    with pytest.raises(ConfigError, match="at least 261"):
        train_tokenizer(TEXTS, kind="word", vocab_size=260)
