"""A session at a console: shows each answer while it comes, what it cost, and keeps the transcript up to date."""

from collections.abc import Callable

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.answering import TextModel
from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.console import Console
from moe_hf.inference.routing_view import routing_lines
from moe_hf.inference.transcript import TranscriptFile


class Chat:
    """What the commands of a chat work on.

    Args:
        session: the conversation.
        console: where the user is.
        load_model: reads a model folder or hub id.
        transcript: written after every answer, if given.

    Attributes:
        replies: all answers since the start, for statistics.
        routing_layer: the decoder layer that colours the tokens; None for the last sparse one.
        saved: the transcripts that the conversation was saved to by hand.
    """

    def __init__(
        self,
        session: ChatSession,
        console: Console,
        load_model: Callable[[str], TextModel],
        transcript: TranscriptFile | None = None,
    ) -> None:
        self.session = session
        self.console = console
        self.load_model = load_model
        self.transcript = transcript
        self.replies: list[Reply] = []
        self.routing_layer: int | None = None
        self.saved: dict[str, TranscriptFile] = {}
        self._is_full = False

    def say(self, message: str) -> Reply:
        """Answers a message and shows it; raises as `ChatSession.ask` does."""
        return self._show(lambda: self.session.ask(message, self.console.answer))

    def retry(self) -> Reply:
        """Answers the last question again and shows it; raises as `ChatSession.retry` does."""
        return self._show(lambda: self.session.retry(self.console.answer))

    def autosave(self) -> None:
        """Brings the transcript up to date.

        Raises:
            CheckpointError: it can't be written.
        """
        if self.transcript is not None and self.session.exchanges:
            self.transcript.save(self.session.messages)

    def begin_conversation(self) -> None:
        """Ends the present conversation's line in the transcripts; call it before the session forgets it."""
        if self.transcript is not None and self.session.exchanges:
            self.transcript.start_next(self.session.messages)
        self.saved.clear()
        self._is_full = False

    def notice_unseen(self, reply: Reply) -> None:
        """Says that the model does not see all of the conversation, once: from then on that is so for every answer."""
        if reply.num_unseen and not self._is_full:
            self.console.notice(context_notice(reply.num_unseen))
        self._is_full = reply.num_unseen > 0

    def _show(self, generate: Callable[[], Reply]) -> Reply:
        try:
            with self.console.interruptible(self.session.stop):
                # Within, where Ctrl-C only sets the event: it must not come between an answer and the end of its line.
                try:
                    reply = generate()
                finally:
                    self.console.end_answer()
        except torch.OutOfMemoryError as error:
            where = self.session.model.place
            raise ConfigError(
                f"the memory of the GPU ({where}) is full; shorten the conversation (/undo, /reset) or answer"
            ) from error
        self.replies.append(reply)
        self.notice_unseen(reply)
        self.console.notice(reply_summary(reply))
        self._show_routing(reply)
        # Last, since it may raise: the answer and its numbers are shown by then.
        self.autosave()
        return reply

    def _show_routing(self, reply: Reply) -> None:
        trace = reply.routing
        if trace is None:
            return
        if trace.experts_LTK.shape[1] == 0:
            self.console.notice("no token of this answer was fed back to the model, so no expert took one")
            return
        layer = self.routing_layer if self.routing_layer in trace.layers else trace.layers[-1]
        self.console.show(routing_lines(trace, layer, self.console.colour))


def context_notice(num_unseen: int) -> str:
    """Says that the oldest messages no longer fit."""
    return (
        f"the context is full: from now on the model no longer sees the oldest messages, {num_unseen} this time "
        "(/stats counts them, /reset begins anew)"
    )


def reply_summary(reply: Reply) -> str:
    """One line: size, speed, seed, and why the answer ended unless the model ended it.

    >>> reply_summary(Reply("Hi", 2, 9, 0.5, "stop", 7, 0, None))
    '[2 tokens, 4.0 tok/s, seed 7]'
    """
    ended = {
        "stop": "" if reply.text else ", an empty answer",
        "interrupted": ", interrupted",
        "max_new_tokens": ", cut off at max_new_tokens",
        "context": ", cut off: the context is full",
    }[reply.finish_reason]
    return f"[{reply.num_tokens} tokens, {reply.tokens_per_second:.1f} tok/s, seed {reply.seed}{ended}]"
