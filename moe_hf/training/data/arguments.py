"""What a training run can be told of its data: the dataclass behind these flags of `train.py`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from moe_hf.training.rules import Checked, Conflict, Range

DATA_RANGES = {
    "eval_fraction": Range(below=1),
    "prompt_loss_fraction": Range(most=1),
    "context_length": Range(2),
    **dict.fromkeys(("num_conversations", "eval_documents", "shuffle_buffer", "vocab_size"), Range(1)),
}
DATA_CONFLICTS = (
    Conflict(
        lambda s: not s.data or "" in s.data,
        "--data must not be empty, got {data}; leave it out for its default",
    ),
    *(
        Conflict(
            lambda s, name=name: not getattr(s, name),
            f"--{name} must not be empty, got {{{name}!r}}; leave it out for its default",
        )
        for name in ("text_column", "messages_column", "data_split")
    ),
    Conflict(
        lambda s: s.text_column == s.messages_column,
        "{flags}: plain text and conversations are both {text_column!r} then; a column holds one kind",
        ("text_column", "messages_column"),
    ),
    Conflict(
        lambda s: s.streaming and s.packing == "none",
        "--packing {packing} needs the whole data; with --streaming use document_mask or eos",
    ),
)


@dataclass
class DataArguments(Checked):
    """What is read, how it becomes tokens, and what is held out."""

    # By this name HfArgumentParser makes a group of the flags in its help.
    _argument_group_name: ClassVar[str] = "data"
    RANGES, CONFLICTS = DATA_RANGES, DATA_CONFLICTS

    data: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={
            "help": "embedded (conversations that the package generates), files (.txt .jsonl .csv .parquet), globs, "
            "folders, or the name of a data set on the hub."
        },
    )
    data_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    data_split: str = field(default="train", metadata={"help": "Split of a hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column with plain text."})
    messages_column: str = field(default="messages", metadata={"help": "Column with conversations."})
    text_unit: Literal["file", "paragraph", "line"] = field(
        default="file", metadata={"help": "What one document of a .txt file is."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read while training instead of before it; needs --max_steps."}
    )
    shuffle_buffer: int = field(
        default=256, metadata={"help": "With --streaming: blocks among which the next one is drawn; 1 keeps the order."}
    )
    packing: Literal["document_mask", "eos", "none"] = field(
        default="document_mask",
        metadata={
            "help": "document_mask: full blocks, documents do not see each other. eos: full blocks, documents joined "
            "by the end-of-text token. none: one document per row, padded."
        },
    )
    prompt_loss_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share in [0, 1] of a conversation's tokens outside the assistant's turns that are learnt too."
        },
    )
    context_length: int | None = field(
        default=None, metadata={"help": "Tokens per row; default: the model's longest sequence."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "A directory or hub id, or word, bpe or byte: trained on the data. Default: the starting "
            "model's own, otherwise the recipe's."
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "Largest vocabulary of a trained tokenizer; a fresh model's embedding has at least as many."},
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "A Jinja file, or moe_hf for the package's own: replaces the tokenizer's chat template."},
    )
    eval_data: list[str] = field(
        default_factory=list, metadata={"help": "Held-out data, named like --data; replaces --eval_fraction."}
    )
    eval_fraction: float = field(
        default=0.02, metadata={"help": "Share of the documents that is held out for evaluation; 0 turns it off."}
    )
    eval_documents: int = field(
        default=200, metadata={"help": "With --streaming: the first so many documents are held out."}
    )
    num_conversations: int = field(default=20_000, metadata={"help": "Size of the embedded corpus."})
