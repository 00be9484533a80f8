from types import SimpleNamespace

import pytest

from moe_hf.cli.web.page import ChatPage, Choices, remark, turns_of
from moe_hf.inference.settings import GenerationSettings

SKIP = object()
VALUES = ["random" if value is None else value for value in GenerationSettings(max_new_tokens=6, seed=1)]
CHOICES = Choices(0, "", VALUES)
# What a page draws anew is all that it needs of gradio.
GRADIO = SimpleNamespace(Textbox=lambda **changes: changes, skip=lambda: SKIP)


@pytest.fixture
def page(tabs) -> ChatPage:
    return ChatPage(GRADIO, tabs)


def last(drawn):
    *_, end = drawn
    return end


def test_an_answer_begins_goes_on_and_ends(page, tabs) -> None:
    (entry, turns, experts, said), *_, end = page.say("a", "hi", CHOICES)
    assert entry == {"submit_btn": False, "stop_btn": "Stop", "value": ""}
    assert turns == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "…"}]
    assert experts is SKIP
    assert "Stop" in said
    assert end[0] == {"submit_btn": "Send", "stop_btn": False}
    assert end[1] == turns_of(tabs.of("a").session)
    assert len(end[1][1]["content"]) == 6
    assert "routing-bar" in end[2]
    assert "[6 tokens" in end[3]


def test_an_empty_message_asks_nothing(page, tabs) -> None:
    assert len(list(page.say("a", " \n", CHOICES))) == 1
    assert tabs.of("a").session.exchanges == []


def test_retry_keeps_the_question(page, tabs) -> None:
    assert "nothing to retry" in last(page.retry("a", CHOICES))[3]
    last(page.say("a", "hi", CHOICES))
    last(page.say("a", "more", CHOICES))
    begun, *_, end = page.retry("a", CHOICES)
    assert [turn["content"] for turn in begun[1]][-2:] == ["more", "…"]
    assert [exchange.user for exchange in tabs.of("a").session.exchanges] == ["hi", "more"]
    assert len(begun[1]) == len(end[1]) == 4


def test_edit_drops_what_came_later(page, tabs) -> None:
    for text in ("one", "two", "three"):
        last(page.say("a", text, CHOICES))
    end = last(page.edit("a", 2, "deux", CHOICES))
    assert [turn["content"] for turn in end[1] if turn["role"] == "user"] == ["one", "deux"]
    assert "value" not in end[0]


def test_undo_gives_the_question_back(page) -> None:
    assert "nothing to undo" in page.undo("a", 0)[3]
    last(page.say("a", "hi", CHOICES))
    entry, turns, experts, _ = page.undo("a", 0)
    assert (entry["value"], turns) == ("hi", [])
    assert "routing-bar" not in experts


def test_reset_begins_anew(page, tabs) -> None:
    last(page.say("a", "hi", CHOICES))
    assert page.reset("a", 0)[1] == []
    assert tabs.of("a").session.exchanges == []


def test_the_system_message_and_the_settings_are_those_of_the_controls(page, tabs) -> None:
    last(page.say("a", "hi", Choices(0, "be brief", VALUES)))
    assert (tabs.of("a").session.system, tabs.of("a").session.settings.max_new_tokens) == ("be brief", 6)
    assert len(turns_of(tabs.of("a").session)) == 2


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [("x" * 5000, VALUES, "context holds 4096"), ("hi", [0, *VALUES[1:]], "temperature must be")],
)
def test_what_cant_be_asked_is_said_and_stays_in_the_entry(page, tabs, text, values, message) -> None:
    entry, turns, _, said = last(page.say("a", text, Choices(0, "", values)))
    assert message in said
    assert (entry["value"], turns) == (text, [])


def test_a_failed_answer_can_be_retried(page, tabs, monkeypatch) -> None:
    def fail(*arguments):
        raise RuntimeError("<b>the disk\nis on fire</b>")

    with monkeypatch.context() as broken:
        broken.setattr(tabs.model, "complete", fail)
        entry, turns, _, said = last(page.say("a", "hi", CHOICES))
    assert "&lt;b&gt;the disk is on fire" in said
    assert "value" not in entry
    assert [turn["content"] for turn in turns] == ["hi"]
    end = last(page.retry("a", CHOICES))
    assert [turn["role"] for turn in end[1]] == ["user", "assistant"]


def test_another_layer_draws_the_same_answer(page) -> None:
    last(page.say("a", "hi", CHOICES))
    assert "of layer 0" in page.experts("a", 0)
    # A layer that has no experts: the last one that has.
    assert "of layer 0" in page.experts("a", None)
    assert "routing-bar" not in page.experts("b", 0)


def test_a_remark_writes_no_html() -> None:
    assert remark("<i>\x1b[2J") == '<p class="remark" role="status">&lt;i&gt;[2J</p>'
