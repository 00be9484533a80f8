"""What llama.cpp needs of a SentencePiece BPE tokenizer besides its tokens: scores, and whether a space comes first."""

import re
from collections.abc import Mapping
from typing import Any

from moe_hf.base.errors import CheckpointError

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def is_sentencepiece(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds BPE as SentencePiece does it: of letters, and of bytes for the others."""
    return content["model"].get("type") == "BPE" and bool(content["model"].get("byte_fallback"))


def is_byte(text: str) -> bool:
    """Whether a token stands for a byte.

    >>> is_byte("<0x0A>"), is_byte("<s>")
    (True, False)
    """
    return _BYTE.fullmatch(text) is not None


def scores_of(content: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """A score for each token: of two neighbours llama.cpp merges those whose token has the highest.

    transformers keeps the order of the merges alone, which says the same.
    """
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(content["model"]["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    # No merge makes a token without a rank: letters, bytes and what is special.
    last = len(content["model"]["merges"])
    return [-float(ranks.get(token, last)) for token in tokens]


def puts_space_first(name: str, content: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it.

    Raises:
        CheckpointError: the tokenizer treats spaces in another way than SentencePiece.
    """
    normalizer, splitter = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    if splitter.get("type") == "Metaspace" and not splitter.get("split") and not normalizer:
        return splitter.get("prepend_scheme") != "never"
    steps = normalizer.get("normalizers", [normalizer])
    kinds = [step.get("type") for step in steps]
    if not splitter and kinds in (["Replace"], ["Prepend", "Replace"]) and steps[-1].get("content") == _SPACE:
        return kinds[0] == "Prepend"
    raise CheckpointError(
        f"the tokenizer of {name} normalizes or splits text in another way than SentencePiece, which llama.cpp does not"
    )


def notices_of(content: Mapping[str, Any]) -> list[str]:
    """What a user should know of where texts become other tokens, a sentence each."""
    if (content.get("pre_tokenizer") or {}).get("prepend_scheme") in (None, "never"):
        return []
    return [
        "llama.cpp puts a space before every text that starts or follows a special token, as SentencePiece does; this "
        "tokenizer only where there is none and not behind special tokens, and so some prompts become other tokens"
    ]
