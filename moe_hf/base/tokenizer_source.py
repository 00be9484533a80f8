"""Loads the tokenizer of a model, and lets it split text into words as its GGUF file says."""

from pathlib import Path
from typing import Any

from moe_hf.base.errors import CheckpointError, reading
from moe_hf.base.model_source import ModelSource
from moe_hf.base.optional import require

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
"""Each is the vocabulary, or names it, in one of the formats that transformers reads."""

UNKNOWN_SPLIT = "default"
"""What llama.cpp calls a way of splitting text into words that it does not know."""

SPLITS: dict[tuple[str, ...], str] = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_CONTRACTIONS + r"\p{N}" + _REST, "bytes"): "qwen2",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, "bytes"): "llama-bpe",
}
"""What llama.cpp calls a way of splitting text into words, by its steps: patterns, GPT-2's words, single digits."""

TAKES_WORDS = "llama-bpe"
"""The split with which llama.cpp takes a word that is a token whole; it merges bytes everywhere else."""


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a model, by transformers' `AutoTokenizer`.

    transformers does not read how a GGUF file's tokenizer splits text, and splits most as GPT-2 does: SmolLM2's blank
    lines before a number became other tokens. Splits that `SPLITS` does not name stay as transformers has them.

    Raises:
        CheckpointError: the folder holds none (transformers would make one without a token), or one that can't be read.
        OSError: as transformers does.
    """
    folder = Path(source.folder)
    with_files = source.gguf_file is not None or any((folder / file).is_file() for file in TOKENIZER_FILES)
    if folder.is_dir() and not with_files:
        raise CheckpointError(f"{source.folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    # Both are slow to import.
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    with reading(f"the tokenizer of {source.folder}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(source.folder, **source.options)
        # A word there would fail with the first text only.
        float(tokenizer.model_max_length)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if source.gguf_file is not None and backend is not None:
        field = (
            require("gguf", "reading a tokenizer")
            .GGUFReader(cached_file(source.folder, source.gguf_file))
            .get_field("tokenizer.ggml.pre")
        )
        split = None if field is None else field.contents()
        steps = next((steps for steps, name in SPLITS.items() if name == split), None)
        if steps is not None:
            backend.pre_tokenizer = _pre_tokenizer(steps)
            if split == TAKES_WORDS:
                backend.model.ignore_merges = True
    return tokenizer


def split_of(content: dict[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer splits text into words.

    Told by the steps in its tokenizer.json. llama.cpp's own converter looks at the ids of one text, by which it knows
    the vocabularies in its list alone.
    """
    top = content.get("pre_tokenizer") or {}
    steps = top.get("pretokenizers", [top]) if top.get("type") == "Sequence" else [top]
    return SPLITS.get(tuple(map(_step, steps)), UNKNOWN_SPLIT)


def _step(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex"))
    return f"unknown {kind}"


def _pre_tokenizer(steps: tuple[str, ...]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    made: list[Any] = []
    for step in steps:
        if step == "digits":
            made.append(pre_tokenizers.Digits(individual_digits=True))
        elif step in ("words", "bytes"):
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == "words"))
        else:
            made.append(pre_tokenizers.Split(Regex(step), "isolated"))
    return pre_tokenizers.Sequence(made)
