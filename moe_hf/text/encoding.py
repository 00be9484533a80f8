"""Turns texts and conversations into token ids so that only a chat template writes control tokens."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from moe_hf.base.errors import ConfigError

# Stand in for control tokens that are hidden from a template: a plane that no script and no icon font uses.
_STAND_INS = range(0x100000, 0x10FFFE)
# A text longer than the model is no mistake here: whoever asked splits or cuts it.
_QUIETLY = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}


class Encoded(NamedTuple):
    """Token ids, and for each whether it is the assistant's (1) or not (0)."""

    input_ids: list[int]
    assistant_mask: list[int]


class _Piece(NamedTuple):
    """Tokens with the characters `(from, to)` that each was made of."""

    ids: list[int]
    spans: list[tuple[int, int]]


class TextEncoder:
    """Encodes for one tokenizer; what a user or a document says never becomes a control token, it is spelled out.

    Control tokens are the tokenizer's special tokens and the other added tokens that its chat template writes, such as
    role marks. Pairs of tags (`<think>` and `</think>`) are parts of an answer and stay what they are. Role marks that
    are no added tokens (`[INST]`, `### User:`) are text to every tokenizer and cannot be told from what is typed.

    Args:
        tokenizer: any of transformers' tokenizers; its chat template is taken as it is now.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._template: str | None = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self._tokens = {token.content: token for token in self._control_tokens()}
        self._ids: dict[str, int] = {name: tokenizer.added_tokens_encoder[name] for name in self._tokens}
        self._id_set = frozenset(self._ids.values())
        longest_first = sorted(self._tokens, key=len, reverse=True)
        # Without any, a pattern that never matches.
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._any_case = re.compile(self._pattern.pattern, re.IGNORECASE)
        self._drops_space_after_token = self._probe_space()

    @property
    def marks_answers(self) -> bool:
        """Whether `encode_marked` can be used: the template has generation marks, and the tokenizer tells offsets."""
        return bool(
            self._template and re.search(r"\{%-?\s*generation\s*-?%\}", self._template) and self.tokenizer.is_fast
        )

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, without any that the tokenizer adds at the ends."""
        if not texts:
            return []
        encoded: Any = self.tokenizer(list(texts), split_special_tokens=True, **_QUIETLY)
        rows: list[list[int]] = encoded["input_ids"]
        return [
            row if self._id_set.isdisjoint(row) else self._spell(text, False, False).ids
            for text, row in zip(texts, rows, strict=True)
        ]

    def encode(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[int]:
        """Token ids of a conversation, those of `apply_chat_template` unless a message holds a control token.

        Raises:
            ConfigError: the chat template refuses the conversation.
        """
        hidden, names = self._hide(messages)
        text, _ = self._render(hidden, add_generation_prompt, with_spans=False)
        return self._encode_rendered(text, names, with_spans=False).ids

    def encode_marked(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """The same, with a mask of the template's `{% generation %}` parts.

        Raises:
            ConfigError: the chat template refuses the conversation.
        """
        hidden, names = self._hide(messages)
        text, answers = self._render(hidden, False, with_spans=True)
        ids, spans = self._encode_rendered(text, names, with_spans=True)
        if names:
            # The template's spans count a stand-in as the one character that it is, the tokens' spans the whole name.
            answers = [(_length(text[:begin], names), _length(text[:end], names)) for begin, end in answers]
        mask = [int(any(start < end and stop > begin for begin, end in answers)) for start, stop in spans]
        return Encoded(ids, mask)

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        """The text that the chat template makes of messages, as they are.

        Raises:
            ConfigError: the chat template refuses the conversation.
        """
        return self._render(messages, add_generation_prompt, with_spans=False)[0]

    def _control_tokens(self) -> Iterator[Any]:
        added = self.tokenizer.added_tokens_decoder.values()
        known = {token.content for token in added}
        written = "" if self._template is None else self._template + self._rendered_probe()
        for token in added:
            name = token.content
            # A single character, and what stands for unknown text, is what plain text becomes as well.
            if len(name) < 2 or name.isspace() or name == self.tokenizer.unk_token:
                continue
            partner = name.replace("<", "</", 1) if not name.startswith("</") else name.replace("</", "<", 1)
            is_tag = name.startswith("<") and name.endswith(">") and partner in known
            if token.special or (name in written and not is_tag):
                yield token

    def _rendered_probe(self) -> str:
        """What the template writes around three messages: it may build role marks of parts. Empty if it refuses."""
        turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        try:
            return self.render(turns, add_generation_prompt=True)
        except ConfigError:
            return ""

    def _probe_space(self) -> bool:
        """Whether a text behind a control token lacks a space that the same text alone is given (SentencePiece)."""
        if not self._ids:
            return False
        name, token = next(iter(self._ids.items()))
        behind: list[int] = self.tokenizer(f"{name}a", **_QUIETLY)["input_ids"]
        return behind[:1] == [token] and behind[1:] != self.tokenizer("a", **_QUIETLY)["input_ids"]

    def _hide(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Any], dict[str, str]]:
        """The messages with a stand-in for each control token in them, and what each stand-in stands for."""
        # Once rendered, a control token that was typed could not be told from one that the template wrote.
        found = dict.fromkeys(name for text in _strings(messages) for name in self._pattern.findall(text))
        if not found:
            return list(messages), {}
        taken = set(itertools.chain.from_iterable(_strings(messages)))
        free = (chr(code) for code in _STAND_INS if chr(code) not in taken)
        stand_ins = dict(zip(found, free, strict=False))
        hidden = _replaced(list(messages), lambda text: self._pattern.sub(lambda m: stand_ins[m.group()], text))
        return hidden, {stand_in: name for name, stand_in in stand_ins.items()}

    def _render(
        self, messages: Sequence[Any], add_generation_prompt: bool, with_spans: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        # Rows of a table hold None for what only other messages have, and templates look whether a key is there.
        turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            options: dict[str, Any] = {"return_assistant_tokens_mask": with_spans, **self.tokenizer.special_tokens_map}
            # Two lists, with one entry each.
            rendered: Any = render_jinja_template(
                [turns], chat_template=self._template, add_generation_prompt=add_generation_prompt, **options
            )
        # A template is a program of somebody else: it may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"the chat template refuses this conversation: {reason}") from error
        (text,), spans = rendered
        return text, spans[0] if spans else []

    def _encode_rendered(self, text: str, names: Mapping[str, str], with_spans: bool) -> _Piece:
        parts = self._pattern.split(text)
        if not names:
            whole = self._call(text, with_spans)
            # More control tokens than the template wrote: the tokenizer's normalizer made one of something else.
            if sum(token in self._id_set for token in whole.ids) == len(parts) // 2:
                return whole
        restore = str.maketrans(dict(names))
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        position = 0
        for index, part in enumerate(parts):
            part = part.translate(restore)
            if index % 2:
                piece = _Piece([self._ids[part]], [(0, len(part))])
            else:
                kept = part
                # Encoded whole, such a token would swallow the blanks behind it.
                if index and self._tokens[parts[index - 1]].rstrip:
                    kept = kept.lstrip()
                indent = len(part) - len(kept)
                if index + 1 < len(parts) and self._tokens[parts[index + 1]].lstrip:
                    kept = kept.rstrip()
                piece = self._spell(kept, index > 0, with_spans)
                piece = _Piece(piece.ids, [(start + indent, stop + indent) for start, stop in piece.spans])
            ids += piece.ids
            spans += [(start + position, stop + position) for start, stop in piece.spans]
            position += len(part)
        return _Piece(ids, spans)

    def _spell(self, text: str, inside: bool, with_spans: bool) -> _Piece:
        """The text in ids of which none is a control token's; `inside`: a control token stands before it."""
        if not text:
            return _Piece([], [])
        for starts in self._cuts(text):
            ids: list[int] = []
            spans: list[tuple[int, int]] = []
            for start, stop in itertools.pairwise([*starts, len(text)]):
                piece = self._call(text[start:stop], with_spans, spelled=True, inside=inside or start > 0)
                ids += piece.ids
                spans += [(start + begin, start + end) for begin, end in piece.spans]
            if self._id_set.isdisjoint(ids):
                return _Piece(ids, spans)
        raise ConfigError(f"the tokenizer makes a control token of plain text: {text!r:.60}")

    def _cuts(self, text: str) -> Iterator[list[int]]:
        """Where the text may be cut so that it spells: nowhere, inside each control token, everywhere."""
        yield [0]
        # Some tokenizers know control tokens as words too,
        yield [0, *(match.start() + 1 for match in self._any_case.finditer(text))]
        # and some have a normalizer that makes one of other characters.
        yield list(range(len(text)))

    def _call(self, text: str, with_spans: bool, spelled: bool = False, inside: bool = False) -> _Piece:
        # A line end in front takes the space that SentencePiece gives the beginning of a text; it is cut off again.
        before = "\n" if inside and self._drops_space_after_token else ""
        options = {"split_special_tokens": spelled, "return_offsets_mapping": with_spans, **_QUIETLY}
        encoded: Any = self.tokenizer(before + text, **options)
        ids: list[int] = encoded["input_ids"]
        spans: list[tuple[int, int]] = encoded["offset_mapping"] if with_spans else []
        if before:
            line_end: list[int] = self.tokenizer(before, **_QUIETLY)["input_ids"]
            if ids[: len(line_end)] != line_end:
                # The tokenizer joins the line end with the text.
                return self._call(text, with_spans, spelled)
            ids = ids[len(line_end) :]
            spans = [(start - 1, stop - 1) for start, stop in spans[len(line_end) :]]
        return _Piece(ids, spans)


def _strings(value: Any) -> Iterator[str]:
    """All texts in messages, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    """The same with each text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _replaced(part, change) for key, part in value.items()}
    return [_replaced(part, change) for part in value] if isinstance(value, list | tuple) else value


def _length(text: str, names: Mapping[str, str]) -> int:
    """Characters of the text once each stand-in is what it stands for."""
    return len(text) + sum(text.count(stand_in) * (len(name) - 1) for stand_in, name in names.items())
