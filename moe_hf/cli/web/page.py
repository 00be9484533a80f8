"""What happens when the parts of the page are used: a message, a retry, an edit, an undo, another layer."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from types import ModuleType
from typing import Any, NamedTuple

from moe_hf.base.printable import one_line, printable
from moe_hf.cli.web.controls import settings_from
from moe_hf.cli.web.tabs import Tab, Tabs
from moe_hf.inference.chat import reply_summary
from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.routing_html import routing_html

Turns = list[dict[str, str]]
Drawn = tuple[Any, Any, Any, Any]
"""What to draw anew: the entry, the conversation, the expert view, the remark below them."""

_WAITING = "…"


class Choices(NamedTuple):
    """What the controls beside the conversation stand at: the layer that colours tokens, system message, settings."""

    layer: int | None
    system: str
    values: Sequence[Any]


class ChatPage:
    """The handlers of the page; `tab` is the name that gradio gave the browser's tab.

    Args:
        gradio: the package.
        tabs: the conversations.
    """

    def __init__(self, gradio: ModuleType, tabs: Tabs) -> None:
        self._gradio: Any = gradio
        self._tabs = tabs

    def say(self, name: str, text: str, choices: Choices) -> Iterator[Drawn]:
        """Answers a message."""
        tab = self._tabs.of(name)
        if not text.strip():
            yield self._drawn(tab, choices.layer, "", entry="")
            return
        yield self._begun(turns_of(tab.session), text, entry="")
        yield from self._answer(tab, turns_of(tab.session), text, choices, lambda show: tab.session.ask(text, show))

    def retry(self, name: str, choices: Choices) -> Iterator[Drawn]:
        """Answers the last question again."""
        tab = self._tabs.of(name)
        question = tab.session.last_question
        if question is None:
            yield self._drawn(tab, choices.layer, "There is nothing to retry yet.")
            return
        before = turns_of(tab.session)[: 2 * (len(tab.session.exchanges) - (tab.session.pending is None))]
        yield self._begun(before, question)
        yield from self._answer(tab, before, question, choices, tab.session.retry)

    def edit(self, name: str, index: int, text: str, choices: Choices) -> Iterator[Drawn]:
        """Answers the question at `index` of the turns anew, with another text; later turns go."""
        tab = self._tabs.of(name)
        before = turns_of(tab.session)[:index]
        yield self._begun(before, text)
        yield from self._answer(
            tab, before, text, choices, lambda show: tab.session.ask_again(index // 2, text, show), lost="keep"
        )

    def undo(self, name: str, layer: int | None) -> Drawn:
        """Drops the last question and its answer; the question stands in the entry, to be changed."""
        tab = self._tabs.of(name)
        question = tab.undo()
        if question is None:
            return self._drawn(tab, layer, "There is nothing to undo yet.")
        return self._drawn(tab, layer, "Dropped; the question stands in the entry again.", entry=question)

    def reset(self, name: str, layer: int | None) -> Drawn:
        """Begins a new conversation."""
        tab = self._tabs.of(name)
        tab.reset()
        return self._drawn(tab, layer, "A new conversation; system message and settings stay.", entry="")

    def stop(self, name: str) -> None:
        """Ends the answer that is under way."""
        self._tabs.stop(name)

    def experts(self, name: str, layer: int | None) -> str:
        """The expert view of the tab's last answer."""
        return _expert_view(self._tabs.of(name), layer)

    def _answer(
        self,
        tab: Tab,
        before: Turns,
        question: str,
        choices: Choices,
        generate: Callable[[Callable[[str], None]], Reply],
        lost: str = "entry",
    ) -> Iterator[Drawn]:
        skip = self._gradio.skip
        try:
            tab.configure(choices.system, settings_from(choices.values))
            for update in tab.answer(generate):
                if update.reply is None:
                    turns = [*before, *_exchange(question, printable(update.text))]
                    yield skip(), turns, _expert_view(tab, choices.layer), skip()
                else:
                    yield self._drawn(tab, choices.layer, _summary(update.reply))
        # A wrong setting, a question that is too long, a failed generation, somebody's template: the page goes on.
        except Exception as error:
            # What was typed is not lost.
            entry = question if lost == "entry" and tab.session.last_question != question else None
            yield self._drawn(tab, choices.layer, f"error: {one_line(error) or type(error).__name__}", entry=entry)

    def _begun(self, before: Turns, question: str, entry: str | None = None) -> Drawn:
        text = {} if entry is None else {"value": entry}
        return (
            self._gradio.Textbox(submit_btn=False, stop_btn="Stop", **text),
            [*before, *_exchange(question, "")],
            self._gradio.skip(),
            remark("Answering. Escape or Stop ends it."),
        )

    def _drawn(self, tab: Tab, layer: int | None, said: str, entry: str | None = None) -> Drawn:
        text = {} if entry is None else {"value": entry}
        return (
            self._gradio.Textbox(submit_btn="Send", stop_btn=False, **text),
            turns_of(tab.session),
            _expert_view(tab, layer),
            remark(said),
        )


def turns_of(session: ChatSession) -> Turns:
    """The conversation as the page draws it: without the system message, which has a place of its own."""
    return [
        {"role": str(message["role"]), "content": printable(message["content"])}
        for message in session.messages
        if message["role"] != "system"
    ]


def remark(text: str) -> str:
    """A line below the conversation, which a screen reader speaks when it changes."""
    return f'<p class="remark" role="status">{escape(printable(text))}</p>'


def _exchange(question: str, answer: str) -> Turns:
    return [{"role": "user", "content": printable(question)}, {"role": "assistant", "content": answer or _WAITING}]


def _expert_view(tab: Tab, layer: int | None) -> str:
    trace = tab.routing
    if trace is None or not trace.experts_LTK.shape[1]:
        return '<p class="routing-caption">The experts of each token show here while an answer comes.</p>'
    return routing_html(trace, layer if layer in trace.layers else trace.layers[-1])


def _summary(reply: Reply) -> str:
    unseen = f" The context is full: the model did not see the oldest {reply.num_unseen} messages."
    return reply_summary(reply) + (unseen if reply.num_unseen else "")
