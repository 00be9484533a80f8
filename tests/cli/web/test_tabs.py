import threading
import time

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.cli.web.tabs import Tabs
from moe_hf.inference.settings import GenerationSettings


def test_each_tab_has_a_conversation_of_its_own(tabs) -> None:
    one, other = tabs.of("a"), tabs.of("b")
    *_, last = one.answer(lambda show: one.session.ask("hi", show))
    assert last.reply.num_tokens == 12
    assert tabs.of("a") is one
    assert (len(one.session.exchanges), other.session.exchanges) == (1, [])
    assert one.routing is last.reply.routing is not None
    one.reset()
    assert (one.session.exchanges, one.routing) == ([], None)


def test_one_answer_at_a_time_and_a_closed_tab_frees_the_model(babbler) -> None:
    tabs = Tabs(babbler, GenerationSettings(max_new_tokens=4000, seed=1))
    running, order = threading.Event(), []

    def talk(name, question) -> None:
        tab = tabs.of(name)
        for update in tab.answer(lambda show: tab.session.ask(question, show)):
            running.set()
            if update.reply is not None:
                order.append((name, update.reply.finish_reason))

    first = threading.Thread(target=talk, args=("a", "hi"))
    first.start()
    assert running.wait(20)
    tabs.of("b").session.settings = GenerationSettings(max_new_tokens=3, seed=1)
    second = threading.Thread(target=talk, args=("b", "hi"))
    second.start()
    time.sleep(0.3)
    assert order == []
    tabs.stop("a")
    first.join(20)
    second.join(20)
    assert order == [("a", "interrupted"), ("b", "max_new_tokens")]


@pytest.mark.parametrize("action", ["reset", "undo"])
def test_what_changes_the_conversation_ends_the_answer_first(babbler, action) -> None:
    tab = Tabs(babbler, GenerationSettings(max_new_tokens=4000, seed=1)).of("a")
    running, replies = threading.Event(), []

    def talk() -> None:
        for update in tab.answer(lambda show: tab.session.ask("hi", show)):
            running.set()
            replies.append(update.reply)

    thread = threading.Thread(target=talk)
    thread.start()
    assert running.wait(20)
    assert getattr(tab, action)() == ("hi" if action == "undo" else None)
    thread.join(20)
    assert replies[-1].finish_reason == "interrupted"
    assert (tab.session.exchanges, tab.session.pending) == ([], None)


def test_stopping_a_tab_that_does_not_exist_makes_none(tabs) -> None:
    tabs.stop("never")
    assert tabs.of("never").session.exchanges == []


def test_tabs_used_least_recently_are_forgotten(tabs, monkeypatch) -> None:
    monkeypatch.setattr("moe_hf.cli.web.tabs.MOST_TABS", 2)
    first, second = tabs.of("a"), tabs.of("b")
    tabs.of("a")
    tabs.of("c")
    assert tabs.of("a") is first
    assert second.cancelled.is_set()
    assert tabs.of("b") is not second


def test_tabs_in_which_nothing_was_asked_are_forgotten_first(tabs, monkeypatch) -> None:
    monkeypatch.setattr("moe_hf.cli.web.tabs.MOST_TABS", 3)
    talked = tabs.of("a")
    list(talked.answer(lambda show: talked.session.ask("hi", show)))
    for number in range(9):
        tabs.of(f"made up {number}").reset()
    assert tabs.of("a") is talked
    assert not talked.cancelled.is_set()


def test_a_new_tab_begins_with_the_settings_and_may_change_its_own(tabs) -> None:
    tab = tabs.of("a")
    tab.configure(" be brief ", GenerationSettings(top_k=3))
    assert (tab.session.system, tab.session.settings.top_k) == ("be brief", 3)
    assert (tabs.of("b").session.system, tabs.of("b").session.settings.top_k) == (None, 50)
    tab.configure(" ", GenerationSettings())
    assert tab.session.system is None


def test_a_refused_system_message_changes_nothing(tabs, monkeypatch) -> None:
    tab = tabs.of("a")

    def refuse(messages):
        raise ConfigError("no system message here")

    monkeypatch.setattr(tab.session.model, "encode", refuse)
    with pytest.raises(ConfigError, match="no system message"):
        tab.configure("be brief", GenerationSettings(top_k=3))
    assert (tab.session.system, tab.session.settings.top_k) == (None, 50)
