"""One request while it is answered: what its handler, its generation and its connection know of it together."""

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_hf.serving.served import ServedModel


@dataclass
class Call:
    """A request that is being answered.

    Attributes:
        stop: set when nobody waits for the answer any more; generation ends at the next token.
        model: which model answers, once that is known.
        seed: start of the random numbers; None for a fresh one.
        is_chat: whether a conversation is answered, not a text continued.
        settings: what the request sets beyond the fields that transformers' server reads itself.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    model: "ServedModel | None" = None
    seed: int | None = None
    is_chat: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


_CALL: ContextVar[Call] = ContextVar("call")


def begin_call() -> Call:
    """A new call, which `current_call` returns in this task and in those that it starts."""
    call = Call()
    _CALL.set(call)
    return call


def current_call() -> Call:
    """The call that this task answers."""
    return _CALL.get()
