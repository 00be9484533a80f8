"""Holds answers to a JSON schema: at every token, only what can still become such JSON may be chosen."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_hf.base.errors import ConfigError, first_line
from moe_hf.base.optional import require

# Free white space would let a weak model write blanks without end.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON schema in a file.

    Raises:
        ConfigError: the file can't be read, or holds no JSON object.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"can't read the JSON schema {path}: {first_line(error)}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"the JSON schema {path} must be an object, got {type(schema).__name__}")
    return schema


class JsonAnswers:
    """A JSON schema, made ready for the tokens of one model; llguidance does the work.

    Args:
        schema: a JSON schema; what it refers to must stand in it.
        tokenizer: of the model, a fast one.
        vocab_size: entries of the model's logits.
        stop_ids: tokens that end an answer.

    Raises:
        ConfigError: the schema has a part that can't be held to, or the tokenizer is not fast or ends no answer.
        BackendUnavailableError: llguidance is not installed.
    """

    def __init__(
        self, schema: dict[str, Any], tokenizer: PreTrainedTokenizerBase, vocab_size: int, stop_ids: Iterable[int]
    ) -> None:
        self._llguidance: Any = require("llguidance", "answers by a JSON schema")
        ends = sorted(stop_ids)
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or not ends:
            lacks = "no token that ends an answer" if not ends else "no fast tokenizer (tokenizer.json)"
            raise ConfigError(f"a JSON schema can't be held to: the model has {lacks}; choose another model")
        matcher = self._llguidance.LLMatcher
        try:
            self._grammar = matcher.grammar_from_json_schema(schema, overrides=_LAYOUT)
            hf = require("llguidance_hf", "answers by a JSON schema")
            self._tokens = hf.from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=ends)
            is_wrong, problems = matcher.validate_grammar_with_warnings(self._grammar, self._tokens)
        except (ValueError, RuntimeError) as error:
            is_wrong, problems = True, [first_line(error)]
        # A warning says that a part of the schema would be passed over: the answer might not be by it.
        if is_wrong or problems:
            raise ConfigError(f"the JSON schema can't be held to: {'; '.join(map(str, problems))}; change the schema")

    def processor(self) -> LogitsProcessor:
        """What `generate` needs for one answer."""
        return _OnlyWhatFits(self._llguidance.LLMatcher(self._tokens, self._grammar, log_level=0))


class _OnlyWhatFits(LogitsProcessor):
    """Takes their chance from all tokens that lead away from the grammar; for a batch of one."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._length: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # The prompt stands there at the first call, then comes a token for each.
        new = [] if self._length is None else input_ids[0, self._length :].tolist()
        self._length = input_ids.shape[1]
        if not self._matcher.consume_tokens(new):
            raise RuntimeError(f"the answer left its JSON schema: {first_line(self._matcher.get_error())}")
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        if self._matcher.is_error():
            raise RuntimeError(f"the JSON schema is too much: {first_line(self._matcher.get_error())}")
        allowed = torch.from_numpy(numpy.unpackbits(bits, bitorder="little", count=scores.shape[1])).bool()
        masked: Any = scores.masked_fill(~allowed.to(scores.device), float("-inf"))
        return masked
