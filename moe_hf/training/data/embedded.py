"""The embedded corpus as training data: conversations that the package generates, and questions held out of them."""

from typing import Any

import datasets

from moe_hf.text.corpus import EmbeddedCorpus
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.rows import Rows

HELD_OUT_PER_SKILL = 30
_NAME = "the embedded corpus"


def embedded_rows(arguments: DataArguments, seed: int) -> Rows:
    """`num_conversations` conversations, short ones first."""
    conversations = EmbeddedCorpus().train_conversations(arguments.num_conversations, seed)
    rows: Any = datasets.Dataset.from_list([{"messages": c["messages"]} for c in conversations])
    return Rows(rows.to_iterable_dataset() if arguments.streaming else rows, "messages", _NAME)


def embedded_held_out() -> Rows:
    """Questions of every skill that no training conversation asks, with their answers."""
    held_out = [
        {"messages": [*question.messages, {"role": "assistant", "content": question.answer}]}
        for question in EmbeddedCorpus().heldout_questions(HELD_OUT_PER_SKILL)
    ]
    return Rows(datasets.Dataset.from_list(held_out), "messages", _NAME)
