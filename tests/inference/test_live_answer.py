import threading
import time

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.inference.chat_session import ChatSession
from moe_hf.inference.live_answer import live_answer
from moe_hf.inference.settings import GenerationSettings

LONG = GenerationSettings(do_sample=False, max_new_tokens=10_000)


def test_the_last_update_alone_has_the_reply(session) -> None:
    updates = list(live_answer(session, lambda show: session.ask("hi", show), threading.Event()))
    assert updates[-1].reply.text == updates[-1].text == "hello you"
    assert [update.reply for update in updates[:-1]] == [None] * (len(updates) - 1)
    assert all("hello you".startswith(update.text) for update in updates)
    assert session.exchanges[-1].assistant == "hello you"


def test_the_routing_comes_with_the_text(session) -> None:
    session.record_routing = True
    updates = list(live_answer(session, lambda show: session.ask("hi", show), threading.Event()))
    assert updates[-1].routing is updates[-1].reply.routing
    assert updates[-1].routing.experts_LTK.shape[1] > 1
    assert session.on_routing is None


def test_what_goes_wrong_is_raised_where_the_updates_are_read(session) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        list(live_answer(session, lambda show: session.ask(" ", show), threading.Event()))
    assert session.exchanges == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_cancelling_ends_the_answer(babbler, when) -> None:
    session, cancelled = ChatSession(babbler, LONG), threading.Event()
    started = threading.Event()

    def slowly(show):
        def slow(text):
            started.set()
            time.sleep(0.05)
            show(text)

        return session.ask("hi", slow)

    if when == "before":
        cancelled.set()
    updates = live_answer(session, slowly, cancelled)
    if when == "meanwhile":
        next(updates)
        cancelled.set()
    *_, update = updates
    assert update.reply.finish_reason == "interrupted"
    assert started.is_set()
    assert update.reply.num_tokens < 20


def test_whoever_leaves_stops_the_answer(babbler) -> None:
    session = ChatSession(babbler, LONG)

    def slowly(show):
        return session.ask("hi", lambda text: (time.sleep(0.05), show(text)))

    updates = live_answer(session, slowly, threading.Event())
    next(updates)
    updates.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "answer"]
    assert len(session.exchanges) == 1
    assert len(session.exchanges[0].assistant) < 20
