"""Writes a BPE tokenizer, of bytes or SentencePiece's, into a GGUF file: tokens, merges, special ids, chat template."""

import json
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from moe_hf.base.errors import CheckpointError
from moe_hf.base.optional import require
from moe_hf.base.tokenizer_source import TAKES_WORDS, UNKNOWN_SPLIT, split_of
from moe_hf.export.sentencepiece import is_byte, is_sentencepiece, notices_of, puts_space_first, scores_of

_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "mask")

SENTENCEPIECE = "SentencePiece"
"""What a report calls a tokenizer that splits no text into words."""


class TokenizerReport(NamedTuple):
    """What was written of a tokenizer.

    Attributes:
        split: llama.cpp's name of its way of splitting text, or `SENTENCEPIECE`.
        tokens: how many it has.
        has_template: whether it has a chat template.
        notices: what a user should know, a sentence each.
    """

    split: str
    tokens: int
    has_template: bool
    notices: list[str]


def add_tokenizer(
    writer: Any, name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> TokenizerReport:
    """Add a tokenizer to a file.

    Args:
        writer: gguf's GGUFWriter.
        name: what the user called the model.
        tokenizer: a fast one.
        config: of the model: ids of its embedding that the tokenizer lacks become unused tokens, and special ids that
            the tokenizer does not name are those of the model.

    Raises:
        CheckpointError: it is no BPE, or does what llama.cpp does not do.
    """
    content = _content(name, tokenizer)
    pieces = is_sentencepiece(content)
    split = SENTENCEPIECE if pieces else split_of(content)
    tokens, types = _tokens(name, content, config.vocab_size, tokenizer.unk_token if pieces else None)
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores_of(content, tokens))
        writer.add_add_space_prefix(puts_space_first(name, content))
        notices = notices_of(content)
    else:
        _require_merging(name, content, split)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(
            [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
        )
        notices = _notices(content, split)
    writer.add_tokenizer_pre(UNKNOWN_SPLIT if pieces else split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    notices += _add_special(writer, tokenizer, config)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": key, "template": text} for key, text in template.items()]
    if template:
        writer.add_chat_template(template)
    return TokenizerReport(split, len(tokens), bool(template), notices)


def _content(name: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"the tokenizer of {name} is a {type(tokenizer).__name__} without a tokenizer.json; export one that has it"
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    kind = content["model"].get("type")
    if kind != "BPE":
        raise CheckpointError(f"the tokenizer of {name} is a {kind}, which is not written here; only BPE is")
    return content


def _require_merging(name: str, content: dict[str, Any], split: str) -> None:
    if not content["model"]["merges"]:
        raise CheckpointError(f"the tokenizer of {name} has no merges, without which llama.cpp reads no BPE")
    if content["model"].get("ignore_merges") and split != TAKES_WORDS:
        raise CheckpointError(
            f"the tokenizer of {name} takes words whole before it merges (ignore_merges), which llama.cpp does with "
            f"the split {TAKES_WORDS!r} alone, not with {split!r}"
        )


def _tokens(name: str, content: dict[str, Any], vocab_size: int, unknown: str | None) -> tuple[list[str], list[int]]:
    kinds = require("gguf", "writing GGUF files").TokenType
    pieces = is_sentencepiece(content)
    by_id = {
        index: (text, kinds.BYTE if pieces and is_byte(text) else kinds.NORMAL)
        for text, index in content["model"]["vocab"].items()
    }
    for token in content.get("added_tokens") or []:
        by_id[token["id"]] = (token["content"], kinds.CONTROL if token["special"] else kinds.USER_DEFINED)
    by_id |= {index: (text, kinds.UNKNOWN) for index, (text, _) in by_id.items() if text == unknown}
    if max(by_id) >= vocab_size:
        raise CheckpointError(
            f"the tokenizer of {name} gives ids up to {max(by_id)}, but its embedding has {vocab_size} rows; resize it"
        )
    rows = [by_id.get(index, (f"[PAD{index}]", kinds.UNUSED)) for index in range(vocab_size)]
    return [text for text, _ in rows], [int(kind) for _, kind in rows]


def _add_special(writer: Any, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[str]:
    """Add the special ids, and whether a text gets them; returns what a user should know of that."""
    found = {kind: _special_id(kind, tokenizer, config) for kind in _SPECIAL}
    for kind, index in found.items():
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    # What it adds is seen best in what it does: classes, files and templates have many ways to say it.
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[:1] == [found["bos"]])
    writer.add_add_eos_token(ids[-1:] == [found["eos"]])
    if found["eos"] is None:
        return ["neither tokenizer nor model name a token that ends a text, for which llama.cpp then takes one itself"]
    return []


def _special_id(kind: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int | None:
    index = getattr(tokenizer, f"{kind}_token_id", None)
    if index is None:
        index = getattr(config, f"{kind}_token_id", None)
    # A model may have several that end a text.
    return index[0] if isinstance(index, list) else index


def _notices(content: dict[str, Any], split: str) -> list[str]:
    notices = []
    if split == UNKNOWN_SPLIT:
        notices.append(
            "the tokenizer splits text into words in a way that llama.cpp has no name for: the file says "
            f"{UNKNOWN_SPLIT!r}, and some texts become other tokens there"
        )
    if content.get("normalizer"):
        kind = content["normalizer"].get("type")
        notices.append(f"the tokenizer normalizes text first ({kind}), which llama.cpp does not")
    return notices
