"""A conversation with a model: its messages, its settings, and what is done to them."""

import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from moe_hf.base.errors import ConfigError
from moe_hf.inference.answering import Completion, ContextFullError, TextModel
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.settings import GenerationSettings
from moe_hf.text.chat_template import Message

SEEDS = 2**32


class Reply(NamedTuple):
    """One answer and how it came about.

    Attributes:
        text: the answer as shown.
        num_tokens: tokens of the answer, without the token that ended it.
        num_prompt_tokens: tokens before it.
        seconds: wall time, the reading of the prompt included.
        finish_reason: `stop` (the model ended it), `max_new_tokens`, `context` (no room was left) or `interrupted`.
        seed: gives the same answer again with the same conversation and settings.
        num_unseen: oldest messages that did not fit and that the model did not see.
        routing: which experts took its tokens, if that was asked for and the model has experts.
    """

    text: str
    num_tokens: int
    num_prompt_tokens: int
    seconds: float
    finish_reason: str
    seed: int
    num_unseen: int
    routing: RoutingTrace | None

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer per second of wall time."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


class Exchange(NamedTuple):
    """A question and its answer."""

    user: str
    assistant: str


class ChatSession:
    """A conversation; it neither prints nor reads, and every method leaves it whole, also when it raises.

    Attributes:
        model: answers.
        settings: how answers are drawn.
        system: the system message, or None.
        exchanges: questions with their answers, oldest first. All are kept, also those that no longer fit the context.
        pending: a question that has no answer (yet): generation failed or was stopped before the first word.
        stop: set it, from a signal handler or another thread, to end the answer that is being generated.
        record_routing: whether replies carry their routing.
        on_routing: called with the routing of an answer while it comes, if that is recorded.
    """

    def __init__(self, model: TextModel, settings: GenerationSettings | None = None) -> None:
        self.model = model
        self.settings = settings or model.own_settings
        self.system: str | None = None
        self.exchanges: list[Exchange] = []
        self.pending: str | None = None
        self.stop = threading.Event()
        self.record_routing = False
        self.on_routing: Callable[[RoutingTrace], None] | None = None

    @property
    def messages(self) -> list[Message]:
        """The whole conversation; ends with a user message if that has no answer."""
        return self._messages(0, self.pending)

    @property
    def last_question(self) -> str | None:
        """What the user said last."""
        if self.pending is not None:
            return self.pending
        return self.exchanges[-1].user if self.exchanges else None

    def ask(self, question: str, on_text: Callable[[str], None]) -> Reply:
        """Answers `question` and adds both to the conversation.

        Args:
            question: not empty.
            on_text: called with each piece of the answer while it comes.

        Raises:
            ConfigError: the question is empty, or too long for the model even alone. It is not kept then.
        """
        if not question.strip():
            raise ConfigError(f"the message {question!r} is empty; write something to answer")
        # From the system: a `random.seed` of the host program must not give every session the same seeds.
        seed = random.SystemRandom().randrange(SEEDS) if self.settings.seed is None else self.settings.seed
        return self._answer(question, self.settings, seed, on_text)

    def retry(self, on_text: Callable[[str], None]) -> Reply:
        """Answers the last question again with a new seed; the old answer stays if no word of a new one comes.

        Greedy settings would give the same answer, so that this one answer is sampled.

        Raises:
            ConfigError: there is no question yet.
        """
        question = self.last_question
        if question is None:
            raise ConfigError(f"there is nothing to retry after {len(self.exchanges)} exchanges; say something first")
        replaced = self.exchanges.pop() if self.pending is None else None
        count = len(self.exchanges)
        try:
            seed = random.SystemRandom().randrange(SEEDS)
            return self._answer(question, self.settings._replace(do_sample=True), seed, on_text)
        finally:
            if replaced is not None and len(self.exchanges) == count:
                self.exchanges.append(replaced)
                self.pending = None

    def ask_again(self, count: int, question: str, on_text: Callable[[str], None]) -> Reply:
        """Answers `question` behind the first `count` exchanges, in place of all that came after them.

        What came after stays if the question can't be asked.

        Raises:
            ConfigError: as for `ask`, or there are not so many exchanges.
        """
        if not 0 <= count <= len(self.exchanges):
            raise ConfigError(f"can't go back to exchange {count}; the conversation has {len(self.exchanges)}")
        before, self.exchanges = self.exchanges, self.exchanges[:count]
        pending, self.pending = self.pending, None
        try:
            return self.ask(question, on_text)
        finally:
            if self.pending is None and len(self.exchanges) == count:
                self.exchanges, self.pending = before, pending

    def undo(self) -> str:
        """Drops the last question and its answer; returns the question.

        Raises:
            ConfigError: there is none.
        """
        question = self.last_question
        if question is None:
            raise ConfigError(f"there is nothing to undo; the conversation has {len(self.exchanges)} exchanges")
        if self.pending is not None:
            self.pending = None
        else:
            self.exchanges.pop()
        return question

    def reset(self) -> None:
        """Forgets the conversation; system message and settings stay."""
        self.exchanges.clear()
        self.pending = None

    def set_system(self, text: str | None) -> None:
        """Sets or removes the system message.

        Raises:
            ConfigError: the model's chat template knows no system message; the old one stays.
        """
        before, self.system = self.system, text
        # Only rendering shows what a template refuses; behind the system message it may want a question.
        try:
            self.model.encode(self._messages(0, "question"))
        except ConfigError:
            self.system = before
            raise

    def load(self, messages: Sequence[Message]) -> None:
        """Replaces the conversation by one that `read_transcript` checked."""
        turns = [message["content"] for message in messages if message["role"] != "system"]
        self.system = next((message["content"] for message in messages if message["role"] == "system"), None)
        # A last question without an answer is left over here: it is pending.
        self.exchanges = [Exchange(*pair) for pair in zip(turns[0::2], turns[1::2], strict=False)]
        self.pending = turns[-1] if len(turns) % 2 else None

    def encode_question(self, question: str) -> tuple[Sequence[Any], int]:
        """The conversation up to the answer as the model takes it, and how many old exchanges had to be left out of it.

        At least a quarter of the context, or `max_new_tokens` if that is less, is kept free for the answer while there
        are old exchanges to leave out.

        Raises:
            ConfigError: system message and question alone leave no room for one token.
        """
        limit = self.model.context_limit
        if limit is None:
            return self.model.encode(self._messages(0, question)), 0
        wanted = min(self.settings.max_new_tokens, max(1, limit // 4))
        ids = self.model.encode(self._messages(len(self.exchanges), question))
        if len(ids) >= limit:
            raise ConfigError(
                f"the message has {len(ids)} tokens with its frame, the model's context holds {limit} for message and "
                "answer; shorten the message or the system message"
            )
        # Most exchanges that fit, found by doubling from the newest one and then halving between what fits and what
        # does not, so that the work depends on the context and not on how long the conversation is.
        fit, too_many, seen = 0, len(self.exchanges) + 1, 1
        while too_many - fit > 1:
            longer = self.model.encode(self._messages(len(self.exchanges) - seen, question))
            if len(longer) + wanted <= limit:
                ids, fit = longer, seen
            else:
                too_many = seen
            seen = min(2 * seen, len(self.exchanges)) if too_many > len(self.exchanges) else (fit + too_many) // 2
        return ids, len(self.exchanges) - fit

    def _answer(self, question: str, settings: GenerationSettings, seed: int, on_text: Callable[[str], None]) -> Reply:
        prompt_ids, unseen = self.encode_question(question)
        if not prompt_ids:
            raise ConfigError(f"the message {question!r} has no tokens; write something to answer")
        limit = self.model.context_limit
        room = settings.max_new_tokens if limit is None else limit - len(prompt_ids)
        budget = min(settings.max_new_tokens, room)
        # A Ctrl-C that came after the end of the last answer must not stop this one.
        self.stop.clear()
        # Before generating: should that fail, the question is not lost.
        self.pending = question
        while True:
            try:
                completion = self._complete(prompt_ids, settings._replace(max_new_tokens=budget), seed, on_text)
                break
            except ContextFullError:
                left = len(self.exchanges) - unseen
                if left == 0:
                    raise
                # A server does not tell its limit beforehand. A quarter, so that few questions are refused.
                unseen += math.ceil(left / 4)
                prompt_ids = self.model.encode(self._messages(unseen, question))
        if completion.stopped:
            reason = "stop"
        elif completion.num_tokens < budget and self.stop.is_set():
            reason = "interrupted"
        else:
            # A server may know of a limit that is not known here.
            reason = "max_new_tokens" if completion.num_tokens >= settings.max_new_tokens else "context"
        if completion.text or reason != "interrupted":
            self.exchanges.append(Exchange(question, completion.text))
            self.pending = None
        counted = completion.num_prompt_tokens
        return Reply(
            text=completion.text,
            num_tokens=completion.num_tokens,
            num_prompt_tokens=len(prompt_ids) if counted is None else counted,
            seconds=completion.seconds,
            finish_reason=reason,
            seed=seed,
            num_unseen=2 * unseen,
            routing=completion.routing,
        )

    def _complete(
        self, prompt_ids: Sequence[Any], settings: GenerationSettings, seed: int, on_text: Callable[[str], None]
    ) -> Completion:
        return self.model.complete(prompt_ids, settings, seed, on_text, self.stop, self.record_routing, self.on_routing)

    def _messages(self, skip: int, question: str | None) -> list[Message]:
        messages = [] if self.system is None else [Message(role="system", content=self.system)]
        for exchange in self.exchanges[skip:]:
            messages.append(Message(role="user", content=exchange.user))
            messages.append(Message(role="assistant", content=exchange.assistant))
        if question is not None:
            messages.append(Message(role="user", content=question))
        return messages
