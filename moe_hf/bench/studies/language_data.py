"""Cuts the embedded corpus into token blocks to train on and held-out sets to score.

Shapes: B blocks, S positions of one block.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from moe_hf.text.chat_template import Message
from moe_hf.text.corpus import EmbeddedCorpus
from moe_hf.text.tokenizers import train_tokenizer

IGNORED = -100
# Seeds of train streams are small numbers, so these two are never trained on.
_TOKENIZER_SEED = 1_000_001
_FRESH_SEED = 1_000_002
_CHUNK = 256


class HeldOut(NamedTuple):
    """Token ids (B, S) and the targets (B, S) among them that count; `IGNORED` elsewhere."""

    input_ids: torch.Tensor
    labels: torch.Tensor


def corpus_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Whole frequent words, bytes for the rest; the same on every machine."""
    conversations = _corpus().train_conversations(3000, seed=_TOKENIZER_SEED)
    texts = [message["content"] for conversation in conversations for message in conversation["messages"]]
    return train_tokenizer(texts, kind="word", vocab_size=vocab_size)


def training_blocks(
    tokenizer: PreTrainedTokenizerFast, num_blocks: int, context_length: int, seed: int
) -> torch.Tensor:
    """The first `num_blocks` blocks of an endless stream of conversations, joined end to end; (B, S).

    More blocks of the same seed begin with the same blocks.
    """
    wanted = num_blocks * context_length
    ids: list[int] = []
    # The corpus draws the same prefix for any number; 16 tokens is less than any conversation's average.
    stream = _corpus().train_conversations(wanted // 16 + _CHUNK, seed=seed)
    while len(ids) < wanted:
        texts = [_as_text(tokenizer, next(stream)["messages"]) for _ in range(_CHUNK)]
        for row in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            ids += row
    return torch.tensor(ids[:wanted]).view(num_blocks, context_length)


def fresh_conversations(tokenizer: PreTrainedTokenizerFast, num_blocks: int, context_length: int) -> HeldOut:
    """Blocks of conversations newly drawn from the training distribution; every token counts."""
    blocks = training_blocks(tokenizer, num_blocks, context_length, _FRESH_SEED)
    return HeldOut(blocks, blocks)


def heldout_answers(tokenizer: PreTrainedTokenizerFast, per_skill: int, context_length: int) -> HeldOut:
    """Questions that no training conversation holds; only the tokens of the answers count."""
    rows = []
    for question in _corpus().heldout_questions(per_skill):
        answer: Message = {"role": "assistant", "content": question.answer}
        prompt = _as_text(tokenizer, question.messages, add_generation_prompt=True)
        whole = _as_text(tokenizer, [*question.messages, answer])
        # The template writes all special tokens itself.
        prompt_ids, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole))
        if len(ids) <= context_length:
            rows.append((ids, len(prompt_ids)))
    # Padding on the right is never looked at by real tokens, so no mask is needed.
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (ids, prompt_length) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return HeldOut(input_ids, labels)


def _corpus() -> EmbeddedCorpus:
    # No curriculum: an experiment that splits the stream in two wants both halves alike.
    return EmbeddedCorpus(multi_turn_from=0.0)


def _as_text(tokenizer: PreTrainedTokenizerFast, messages: list[Message], add_generation_prompt: bool = False) -> str:
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=add_generation_prompt))
