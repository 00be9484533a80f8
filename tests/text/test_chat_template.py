"""The chat template only appends, and marks exactly the answers with their end."""

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from moe_hf.text.tokenizers import byte_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " hi \n"},
    {"role": "assistant", "content": "\n Hello! "},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "日本 {{ x }}"},
    {"role": "assistant", "content": "ok"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def test_fewer_turns_render_to_a_prefix_of_more_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    whole_text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    whole_ids = tokenizer.apply_chat_template(MESSAGES, return_dict=True)["input_ids"]
    for end in range(1, len(MESSAGES)):
        prompt = MESSAGES[end]["role"] == "assistant"
        text = tokenizer.apply_chat_template(MESSAGES[:end], tokenize=False, add_generation_prompt=prompt)
        ids = tokenizer.apply_chat_template(MESSAGES[:end], add_generation_prompt=prompt, return_dict=True)["input_ids"]
        assert whole_text.startswith(text)
        assert whole_ids[: len(ids)] == ids


def test_each_content_stands_after_one_space_with_its_own_blanks_stripped(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == (
        "<|system|> Be kind.<|user|> hi<|assistant|> Hello!<|endoftext|><|user|> <|assistant|> <|endoftext|>"
        "<|user|> 日本 {{ x }}<|assistant|> ok<|endoftext|>"
    )


def test_an_answer_kept_with_its_leading_space_renders_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    spaced = [{**message, "content": f" {message['content']}"} for message in MESSAGES]
    assert tokenizer.apply_chat_template(spaced, tokenize=False) == tokenizer.apply_chat_template(
        MESSAGES, tokenize=False
    )


def test_the_assistant_mask_covers_the_answers_and_their_end_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    masked = [i for i, keep in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if keep]
    assert tokenizer.decode(masked) == " Hello!<|endoftext|> <|endoftext|> ok<|endoftext|>"


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
