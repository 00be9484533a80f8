"""Answers many questions at once with a model in memory: greedy, in batches padded on the left."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from moe_hf.text.chat_template import Message
from moe_hf.text.encoding import TextEncoder


def batch_answerer(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> Callable[[Sequence[Sequence[Message]]], list[str]]:
    """A function from conversations that end with the user's message to the texts of the answers.

    Args:
        model: a causal language model; it is in eval mode while it answers.
        tokenizer: with a chat template.
        max_new_tokens: an answer stops after so many tokens.
    """

    encoder = TextEncoder(tokenizer)

    def answer(conversations: Sequence[Sequence[Message]]) -> list[str]:
        rows = [encoder.encode(messages, add_generation_prompt=True) for messages in conversations]
        width = max(len(row) for row in rows)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # On the left, since generate writes behind the right end of every row.
        input_ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            output = model.generate(input_ids, attention_mask=mask, generation_config=config)
        model.train(was_training)
        return [text.strip() for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]

    return answer
