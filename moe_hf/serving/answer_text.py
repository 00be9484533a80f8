"""Turns the token ids of one answer into text that ends before a stop string."""

from collections.abc import Callable, Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class AnswerText:
    """Text piece by piece, the same whether it is streamed or collected.

    What may be the beginning of a stop string is held back until more text decides.

    Args:
        tokenizer: a fast one.
        stops: texts that end the answer and are no part of it.
        keep_special: whether special tokens become text, as a parser of tool calls needs.
        strip_start: leave out the blanks before the first word, which many chat templates put there.
        on_text: called with each piece.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[str],
        keep_special: bool,
        strip_start: bool,
        on_text: Callable[[str], None],
    ) -> None:
        self._tokenizer = tokenizer._tokenizer
        self._decode = DecodeStream([], skip_special_tokens=not keep_special)
        self._stops = [stop for stop in stops if stop]
        self._on_text = on_text
        self._held = ""
        self._at_start = strip_start
        self.is_stopped = False

    def add(self, token: int) -> None:
        """Takes the next token; once a stop string came, `is_stopped` is true and tokens have no effect."""
        if self.is_stopped:
            return
        fresh = self._decode.step(self._tokenizer, token) or ""
        if self._at_start:
            fresh = fresh.lstrip()
        if fresh:
            self._at_start = False
            self._held += fresh
            self._let_go()

    def end(self) -> None:
        """Hands over what was held back."""
        if self._held and not self.is_stopped:
            self._on_text(self._held)
        self._held = ""

    def _let_go(self) -> None:
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            free = min(places)
        else:
            free = len(self._held) - self._waiting()
        if free:
            self._on_text(self._held[:free])
        self._held = self._held[free:]

    def _waiting(self) -> int:
        """How many characters at the end may begin a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        return next(
            (
                size
                for size in range(min(longest, len(self._held)), 0, -1)
                if any(stop.startswith(self._held[-size:]) for stop in self._stops)
            ),
            0,
        )
