"""Turns rows of text or conversations into token documents with labels."""

import zlib
from array import array
from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from moe_hf.base.errors import ConfigError
from moe_hf.text.encoding import TextEncoder
from moe_hf.training.data.rows import RowKind, check_conversation, conversation_in, short

IGNORED = -100
"""The label of a token that is not predicted."""


def prompt_label(token: Any) -> Any:
    """The label of a token that is learnt though it is no answer, below `IGNORED`; of such a label the token.

    >>> prompt_label(prompt_label(7))
    7
    """
    return IGNORED - 1 - token


def require_chat_template(kind: RowKind, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse conversations that nothing renders, in the words of a command that takes no template.

    Raises:
        ConfigError: the rows of `name` are conversations and the tokenizer has no chat template.
    """
    if kind == "messages" and not tokenizer.chat_template:
        raise ConfigError(f"{name} holds conversations but the tokenizer has no chat template; name plain text")


class Document(NamedTuple):
    """One text or conversation as token ids, with each one's label: the id itself, its `prompt_label`, or `IGNORED`."""

    input_ids: list[int]
    labels: list[int]


class DocumentEncoder:
    """Encodes rows; the same row always gives the same document.

    What rows hold is text: a special token that is written in one is spelled out. Text becomes its tokens and the
    end-of-text token, all of them labels, however long. A conversation is rendered by
    the tokenizer's chat template and cut after `context_length` tokens; what the assistant says is a label, and of
    the other tokens a share of `prompt_loss_fraction`, drawn from a seed that is the conversation itself.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        kind: RowKind,
        context_length: int,
        prompt_loss_fraction: float = 0.0,
    ) -> None:
        """Check that the tokenizer can do it.

        Raises:
            ConfigError: the tokenizer has no end-of-text token, or no chat template although `kind` is "messages".
        """
        if kind == "messages" and not tokenizer.chat_template:
            raise ConfigError(
                f"the data holds conversations but the tokenizer {tokenizer.name_or_path!r} has no chat template; give "
                "--chat_template moe_hf (the package's own), --chat_template FILE, or another --tokenizer"
            )
        if kind == "text" and tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-text token (eos_token), which separates documents")
        self.tokenizer = tokenizer
        self.kind = kind
        self.context_length = context_length
        self.prompt_loss_fraction = prompt_loss_fraction
        self._encoder = TextEncoder(tokenizer)

    def __call__(self, rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """Documents of a batch of rows, as columns `input_ids`, `labels` and `length` (in tokens, before any cut).

        The form that `datasets.Dataset.map(batched=True, with_indices=True)` calls. A conversation of which no label
        is left gives an empty document.

        Raises:
            ConfigError: a conversation is broken, or the tokenizer or its chat template fails; the text has the
                conversation's place, or its row's number, counted from 1.
        """
        if self.kind == "text":
            documents = self._encode_texts(rows["text"])
            lengths = [len(document.input_ids) for document in documents]
        else:
            places = rows.get("place") or [None] * len(indices)
            whole = [
                self._encode_cell(cell, place or f"row {index + 1}")
                for index, place, cell in zip(indices, places, rows["messages"], strict=True)
            ]
            lengths = [len(document.input_ids) for document in whole]
            documents = [self._cut(document) for document in whole]
        return {
            "input_ids": [document.input_ids for document in documents],
            "labels": [document.labels for document in documents],
            "length": lengths,
        }

    def _encode_texts(self, texts: list[str]) -> list[Document]:
        try:
            encoded = self._encoder.encode_texts(texts)
        # Tokenizers raise bare Exceptions.
        except Exception as error:
            # The library does not say which text of a batch it failed on; one by one, the error names it.
            if len(texts) > 1:
                return [document for text in texts for document in self._encode_texts([text])]
            raise ConfigError(
                f"the tokenizer {self.tokenizer.name_or_path!r} can't encode the text {short(texts[0])!r} ({error}); "
                "give another --tokenizer"
            ) from error
        end = self.tokenizer.eos_token_id
        # An empty text gives nothing: an end of text alone teaches nobody.
        return [Document([*ids, end], [*ids, end]) if ids else Document([], []) for ids in encoded]

    def _encode_cell(self, cell: Any, where: str) -> Document:
        messages = conversation_in(cell)
        check_conversation(messages, where)
        try:
            return self._encode_conversation(messages)
        # A chat template and a tokenizer are somebody's program, which can fail in any way.
        except Exception as error:
            reason = short(" ".join(str(error).split()), 300) or type(error).__name__
            raise ConfigError(
                f"{where}, a conversation of {short(_roles(messages))}: {reason}; change the conversation, or give "
                "another --chat_template"
            ) from error

    def _encode_conversation(self, messages: list[dict[str, Any]]) -> Document:
        # Without generation marks in the template, the assistant's part is found by rendering turn by turn.
        marked = self._encoder.marks_answers
        ids, mask = self._encoder.encode_marked(messages) if marked else self._mask_turn_by_turn(messages)
        learnt = mask if self.prompt_loss_fraction == 0 else self._with_some_prompt(ids, mask)
        labels = [
            token if spoken else prompt_label(token) if wanted else IGNORED
            for token, spoken, wanted in zip(ids, mask, learnt, strict=True)
        ]
        return Document(ids, labels)

    def _with_some_prompt(self, ids: list[int], mask: list[int]) -> list[int]:
        # From the tokens themselves: whatever the order of reading, and on every process, the same labels are drawn.
        rng = Random(zlib.crc32(array("q", ids).tobytes()))
        return [int(bool(spoken) or rng.random() < self.prompt_loss_fraction) for spoken in mask]

    def _mask_turn_by_turn(self, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
        ids = self._encoder.encode(messages)
        mask = [0] * len(ids)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._encoder.encode(messages[:turn], add_generation_prompt=True)
            until = self._encoder.encode(messages[: turn + 1])
            if ids[: len(before)] != before or ids[: len(until)] != until:
                raise ConfigError(
                    "the chat template changes earlier turns when a turn is added, so the assistant's tokens "
                    "can't be found; put {% generation %} marks into the template (--chat_template FILE)"
                )
            mask[len(before) : len(until)] = [1] * (len(until) - len(before))
        return ids, mask

    def _cut(self, document: Document) -> Document:
        ids, labels = (part[: self.context_length] for part in document)
        # The first label is never predicted: nothing stands before it.
        return Document(ids, labels) if any(label != IGNORED for label in labels[1:]) else Document([], [])


def _roles(messages: list[dict[str, Any]]) -> str:
    return ", ".join(message["role"] for message in messages)
