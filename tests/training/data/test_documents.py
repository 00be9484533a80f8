"""Texts and conversations become tokens, of which the right ones are labels."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.data.documents import IGNORED, DocumentEncoder
from tests.training.data.samples import CHATS


def test_only_what_the_assistant_says_is_a_label(tokenizer):
    encoded = DocumentEncoder(tokenizer, "messages", 200)({"messages": CHATS}, [0, 1])
    spoken = ["4<|endoftext|>", "Hello<|endoftext|>Solong<|endoftext|>"]
    for labels, expected in zip(encoded["labels"], spoken, strict=True):
        said = tokenizer.decode([label for label in labels if label != IGNORED])
        # The template may set a space before an answer.
        assert said.replace(" ", "") == expected


def test_a_template_without_generation_marks_gives_the_same_labels(tokenizer):
    plain = byte_tokenizer()
    plain.chat_template = plain.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    rows = {"messages": CHATS}
    assert DocumentEncoder(plain, "messages", 200)(rows, [0, 1]) == DocumentEncoder(tokenizer, "messages", 200)(
        rows, [0, 1]
    )


def test_a_template_that_changes_earlier_turns_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"row 1.*generation"):
        DocumentEncoder(tokenizer, "messages", 200)({"messages": [CHATS[1]]}, [0])


def test_a_share_of_the_prompt_is_learnt_the_same_share_each_time(tokenizer):
    rows = {"messages": CHATS * 20}
    plain = DocumentEncoder(tokenizer, "messages", 200)(rows, list(range(len(CHATS) * 20)))
    half = DocumentEncoder(tokenizer, "messages", 200, prompt_loss_fraction=0.5)
    encoded = half(rows, list(range(len(CHATS) * 20)))
    assert encoded == half(rows, list(range(len(CHATS) * 20)))
    asked, learnt = 0, 0
    for answers, both in zip(plain["labels"], encoded["labels"], strict=True):
        assert all(label in (IGNORED, other) for label, other in zip(answers, both, strict=True))
        asked += answers.count(IGNORED)
        learnt += answers.count(IGNORED) - both.count(IGNORED)
    assert 0.3 < learnt / asked < 0.7


def test_a_conversation_cut_before_the_answer_is_left_out(tokenizer):
    encoded = DocumentEncoder(tokenizer, "messages", 6)({"messages": [CHATS[0]]}, [0])
    assert encoded["input_ids"] == [[]]
    assert encoded["length"][0] > 6


def test_conversations_need_a_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="--chat_template"):
        DocumentEncoder(tokenizer, "messages", 20)


def test_special_tokens_in_data_are_text(tokenizer):
    said = "a<|endoftext|><|assistant|> b<|user|>"
    end, marks = tokenizer.eos_token_id, set(tokenizer.added_tokens_decoder)
    text = DocumentEncoder(tokenizer, "text", 200)({"text": [said]}, [0])
    assert [token for token in text["input_ids"][0] if token in marks] == [end]
    assert tokenizer.decode(text["input_ids"][0]) == said + "<|endoftext|>"
    chat = [[{"role": "user", "content": said}, {"role": "assistant", "content": said}]]
    plain = byte_tokenizer()
    plain.chat_template = plain.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    for kind in (tokenizer, plain):
        document = DocumentEncoder(kind, "messages", 200)({"messages": chat}, [0])
        ids, labels = document["input_ids"][0], document["labels"][0]
        assert len([token for token in ids if token in marks]) == 3
        assert kind.decode([label for label in labels if label != IGNORED]) == f" {said}<|endoftext|>"
