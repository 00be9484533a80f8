"""An answer as a stream of what is known so far, made in a thread of its own, for a page that redraws itself."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.routing_recorder import RoutingTrace

SECONDS_BETWEEN_UPDATES = 0.08
_SECONDS_BETWEEN_LOOKS = 0.1


class Update(NamedTuple):
    """What is known of an answer: its text so far, the routing so far, and in the last update the reply."""

    text: str
    routing: RoutingTrace | None
    reply: Reply | None


def live_answer(
    session: ChatSession,
    generate: Callable[[Callable[[str], None]], Reply],
    cancelled: threading.Event,
) -> Iterator[Update]:
    """Updates of one answer, at most some twelve a second; the last one, and no other, has the reply.

    Whoever stops iterating (closes the generator) stops the answer too, and gets control back once it has ended.

    Args:
        session: answers; nobody else may use it meanwhile.
        generate: asks it, given what to call with each piece of text: `lambda show: session.ask("Hello", show)`.
        cancelled: set it, from any thread and at any time, to end the answer after the current token.

    Raises:
        Exception: whatever `generate` raises.
    """
    news: queue.SimpleQueue[str | RoutingTrace | Reply | BaseException] = queue.SimpleQueue()

    def answer() -> None:
        try:
            news.put(generate(news.put))
        # Raised again where the updates are read.
        except BaseException as error:
            news.put(error)

    session.on_routing = news.put
    thread = threading.Thread(target=answer, name="answer", daemon=True)
    thread.start()
    try:
        yield from _updates(session, news, cancelled)
    finally:
        # Again and again: an answer that is only about to start clears the event.
        while thread.is_alive():
            session.stop.set()
            thread.join(_SECONDS_BETWEEN_LOOKS)
        session.on_routing = None


def _updates(
    session: ChatSession,
    news: "queue.SimpleQueue[str | RoutingTrace | Reply | BaseException]",
    cancelled: threading.Event,
) -> Iterator[Update]:
    text, routing, drawn = "", None, 0.0
    while True:
        if cancelled.is_set():
            session.stop.set()
        try:
            item = news.get(timeout=_SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            continue
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, Reply):
            yield Update(item.text, item.routing or routing, item)
            return
        text, routing = (text + item, routing) if isinstance(item, str) else (text, item)
        # A quick model is not slowed down by the drawing of every token.
        if time.monotonic() - drawn >= SECONDS_BETWEEN_UPDATES:
            drawn = time.monotonic()
            yield Update(text, routing, None)
