"""What a chat needs from whatever answers it."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from moe_hf.base.errors import ConfigError
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.settings import GenerationSettings
from moe_hf.text.chat_template import Message


class ContextFullError(ConfigError):
    """The conversation is longer than the model behind a server takes."""


class Completion(NamedTuple):
    """What came out of one `generate`.

    Attributes:
        stopped: the model ended the answer itself.
        num_prompt_tokens: tokens before the answer; None where the encoded prompt has one entry for each.
    """

    text: str
    num_tokens: int
    seconds: float
    stopped: bool
    routing: RoutingTrace | None
    num_prompt_tokens: int | None = None


class TextModel(Protocol):
    """Messages in, text out piece by piece: `CausalTextModel` here, `RemoteTextModel` behind a server.

    Attributes:
        name: what to call it.
        is_chat: whether it takes turns; if not, it continues plain text.
    """

    name: str
    is_chat: bool

    @property
    def place(self) -> str:
        """Where it computes, for people to read."""

    @property
    def own_settings(self) -> GenerationSettings:
        """How it draws answers where nobody says otherwise."""

    @property
    def context_limit(self) -> int | None:
        """Most tokens that prompt and answer may have together; None where there is no limit."""

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The decoder layers whose experts it can show; empty if `no_experts` says why not."""

    @property
    def no_experts(self) -> str:
        """Why it shows no experts, if it has no sparse layers."""

    def encode(self, messages: Sequence[Message]) -> Sequence[Any]:
        """The conversation as `complete` takes it, up to where the answer begins: token ids, if it has them here."""

    def complete(
        self,
        prompt_ids: Sequence[Any],
        settings: GenerationSettings,
        seed: int,
        on_text: Callable[[str], None],
        stop: threading.Event | None = None,
        record_routing: bool = False,
        on_routing: Callable[[RoutingTrace], None] | None = None,
    ) -> Completion:
        """Generates after `prompt_ids` and hands over the text, and its routing if asked to, while it comes."""

    def num_parameters(self) -> int | None:
        """All parameters, a shared matrix counted once; None where that is not known."""

    def num_active_parameters(self) -> int | None:
        """Parameters that one token meets; None where that is not known."""

    def peak_memory(self) -> int | None:
        """Most bytes in use so far; None where that is not known."""


def continued_text(messages: Sequence[Message]) -> str:
    """The messages as one plain text: answers stand right behind what they continue, what is said next begins a line.

    >>> continued_text([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    'ab'
    """
    text = ""
    for message in messages:
        text += ("\n" if text and message["role"] != "assistant" else "") + message["content"]
    return text
