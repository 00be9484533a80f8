"""What a chat needs from whatever answers it."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel

from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.settings import GenerationSettings
from moe_hf.text.chat_template import Message


class Completion(NamedTuple):
    """What came out of one `generate`; `stopped` means that the model ended the answer itself."""

    text: str
    num_tokens: int
    seconds: float
    stopped: bool
    routing: RoutingTrace | None


class TextModel(Protocol):
    """Messages in, text out piece by piece; `CausalTextModel` is one.

    Attributes:
        name: what to call it.
        model: the transformers model that generates.
        is_chat: whether it takes turns; if not, it continues plain text.
    """

    name: str
    model: PreTrainedModel
    is_chat: bool

    @property
    def context_limit(self) -> int | None:
        """Most tokens that prompt and answer may have together; None where there is no limit."""

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The decoder layers that have experts; empty for a dense model."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation, up to where the answer begins."""

    def complete(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        seed: int,
        on_text: Callable[[str], None],
        stop: threading.Event | None = None,
        record_routing: bool = False,
    ) -> Completion:
        """Generates after `prompt_ids` and hands over the text while it comes."""

    def num_parameters(self) -> int:
        """All parameters, a shared matrix counted once."""

    def num_active_parameters(self) -> int | None:
        """Parameters that one token meets; None where that is not known."""

    def peak_memory(self) -> int | None:
        """Most bytes in use so far; None where that is not known."""
