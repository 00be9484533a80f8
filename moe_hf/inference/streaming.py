"""Turns generated token ids into text while they come, without ever showing half a character."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation import BaseStreamer

REPLACEMENT = "\ufffd"
# A character has at most 4 bytes, so that a longer wait means bytes that never become text.
LONGEST_WAIT = 8


class Piece(NamedTuple):
    """Text that became printable, and how many tokens it took."""

    text: str
    num_tokens: int


class TextPieces(BaseStreamer):
    """A streamer for `generate` that hands over text as soon as it is whole.

    The text of a token depends on the tokens before it (spaces, characters of several bytes), so the last whole piece
    is decoded again with the new tokens and its text is cut off.

    Args:
        tokenizer: decodes; special tokens are left out.
        stop_ids: tokens that end an answer; they are neither shown nor counted.
        on_text: called with each piece of text.
        strip_start: leave out the blanks before the first word, which many chat templates put there.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        on_text: Callable[[str], None],
        strip_start: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.on_text = on_text
        self.strip_start = strip_start
        self.token_ids: list[int] = []
        self.pieces: list[Piece] = []
        self.stopped = False
        self._prompt_seen = False
        # token_ids[_whole_from:_shown_to] is the last piece, what follows waits.
        self._whole_from = 0
        self._shown_to = 0

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(piece.text for piece in self.pieces)

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt on the first call, then one new token id per call."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            if token in self.stop_ids:
                self.stopped = True
            else:
                self.token_ids.append(token)
                self._show(final=False)

    def end(self) -> None:
        """Shows what was held back; the bytes of a character that was never finished are left out."""
        self._show(final=True)

    def _show(self, final: bool) -> None:
        waiting = len(self.token_ids) - self._shown_to
        if not waiting:
            return
        shown = self._decode(self.token_ids[self._whole_from : self._shown_to])
        text = self._decode(self.token_ids[self._whole_from :])
        if self.strip_start and not self.pieces:
            text = text.lstrip()
        if text.endswith(REPLACEMENT):
            if final:
                text = text.rstrip(REPLACEMENT)
            elif waiting < LONGEST_WAIT:
                return
        fresh = text[len(shown) :]
        # Nothing to see yet, as of a special token or a blank that is stripped: it goes with the next piece.
        if not (fresh or final):
            return
        self._whole_from, self._shown_to = self._shown_to, len(self.token_ids)
        self.pieces.append(Piece(fresh, waiting))
        if fresh:
            self.on_text(fresh)

    def _decode(self, token_ids: list[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopWhenSet(StoppingCriteria):
    """Ends `generate` after the current token once the event is set, as Ctrl-C does."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """One truth value per sequence."""
        return torch.full((input_ids.shape[0],), self.stop.is_set(), dtype=torch.bool, device=input_ids.device)
