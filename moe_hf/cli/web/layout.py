"""The parts of the page and where they stand, joined to the handlers that they call."""

from collections.abc import Iterator
from html import escape
from types import ModuleType
from typing import Any

from moe_hf.base.printable import one_line
from moe_hf.cli.web.controls import setting_controls
from moe_hf.cli.web.page import ChatPage, Choices, Drawn, remark
from moe_hf.cli.web.tabs import Tabs
from moe_hf.inference.answering import TextModel

QUESTIONS = ("What is 8 + 9?", "What is the capital of France?", "What is the opposite of hot?", "Who are you?")
BEGINNINGS = ("Once upon a time", "The capital of France is")
# Answers stand in one queue, since there is one model; what only draws does not wait for them.
ANSWERS: dict[str, Any] = {"concurrency_id": "answers", "concurrency_limit": 1, "show_progress": "hidden"}
DRAWS: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class Layout:
    """Builds the page; `blocks` is what gradio launches.

    Args:
        gradio: the package.
        tabs: the conversations.
        system: the system message of a new tab.
    """

    def __init__(self, gradio: ModuleType, tabs: Tabs, system: str = "") -> None:
        gr: Any = gradio
        self._gradio = gr
        self._page = ChatPage(gradio, tabs)
        with gr.Blocks(title=f"{one_line(tabs.model.name)} - moe_hf", analytics_enabled=False) as self.blocks:
            gr.HTML(heading(tabs.model), elem_id="heading")
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=3, min_width=300):
                    self._add_conversation(tabs.model)
                with gr.Column(scale=2, min_width=300):
                    self._add_experts(tabs.model)
                    with gr.Accordion("System message and settings", open=False):
                        self._system = gr.Textbox(system, label="System message", lines=2, max_lines=6)
                        self._settings = setting_controls(gradio, tabs.settings)
            self._join()

    def _add_conversation(self, model: TextModel) -> None:
        gr = self._gradio
        self._turns = gr.Chatbot(
            label="Conversation",
            height="60vh",
            editable="user",
            buttons=["copy", "copy_all"],
            examples=[{"text": text} for text in (QUESTIONS if model.is_chat else BEGINNINGS)],
            placeholder="Ask something, or take one of these."
            if model.is_chat
            else "Begin a text, or take one of these.",
            feedback_options=(),
            elem_id="conversation",
        )
        self._remark = gr.HTML(remark(""), elem_id="remark")
        self._entry = gr.Textbox(
            label="Message",
            placeholder="Message (Enter sends)",
            show_label=False,
            html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
            lines=1,
            max_lines=8,
            submit_btn="Send",
            autofocus=True,
            elem_id="entry",
        )
        self._reset = gr.Button("New conversation", size="sm", elem_id="reset")

    def _add_experts(self, model: TextModel) -> None:
        gr = self._gradio
        layers = list(model.sparse_layers)
        with gr.Column(visible=bool(layers), elem_id="experts"):
            self._layer = gr.Radio(
                layers, value=layers[-1] if layers else None, label="Experts: layer that colours the tokens"
            )
            self._experts = gr.HTML(self._page.experts("", None), elem_id="routing")

    def _join(self) -> None:
        gr, page = self._gradio, self._page
        choices = [self._layer, self._system, *self._settings]
        drawn = [self._entry, self._turns, self._experts, self._remark]

        def say(request: Any, text: str, layer: int, system: str, *values: Any) -> Iterator[Drawn]:
            yield from page.say(_tab(request), text, Choices(layer, system, values))

        def example(request: Any, event: Any, layer: int, system: str, *values: Any) -> Iterator[Drawn]:
            yield from page.say(_tab(request), event.value["text"], Choices(layer, system, values))

        def retry(request: Any, layer: int, system: str, *values: Any) -> Iterator[Drawn]:
            yield from page.retry(_tab(request), Choices(layer, system, values))

        def edit(request: Any, event: Any, layer: int, system: str, *values: Any) -> Iterator[Drawn]:
            yield from page.edit(_tab(request), event.index, event.value, Choices(layer, system, values))

        def undo(request: Any, layer: int) -> Drawn:
            return page.undo(_tab(request), layer)

        def reset(request: Any, layer: int) -> Drawn:
            return page.reset(_tab(request), layer)

        def experts(request: Any, layer: int) -> str:
            return page.experts(_tab(request), layer)

        def stop(request: Any) -> None:
            page.stop(_tab(request))

        for handler in (say, example, retry, edit, undo, reset, experts, stop):
            # By the annotations gradio sees which arguments are its own; mypy takes no class of an absent package.
            handler.__annotations__["request"] = gr.Request
        example.__annotations__["event"] = gr.SelectData
        edit.__annotations__["event"] = gr.EditData

        self._entry.submit(say, [self._entry, *choices], drawn, **ANSWERS)
        self._turns.example_select(example, choices, drawn, **ANSWERS)
        self._turns.retry(retry, choices, drawn, **ANSWERS)
        self._turns.edit(edit, choices, drawn, **ANSWERS)
        self._turns.undo(undo, self._layer, drawn, **DRAWS)
        self._turns.clear(reset, self._layer, drawn, **DRAWS)
        self._reset.click(reset, self._layer, drawn, **DRAWS)
        self._layer.change(experts, self._layer, self._experts, **DRAWS)
        self._entry.stop(stop, **DRAWS)
        # A tab that was closed.
        self.blocks.unload(stop)


def _tab(request: Any) -> str:
    # A caller of the API need not give itself a name.
    return str(request.session_hash)


def heading(model: TextModel) -> str:
    """What the page talks with."""
    total, active = model.num_parameters(), model.num_active_parameters()
    size = f"at {model.place}" if total is None else f"{total:,} parameters"
    share = "" if active is None else f", {active:,} of them active per token"
    name = escape(one_line(model.name))
    return f"<h1>{name}</h1><p>{escape(one_line(size))}{share}. It may be wrong; check what matters.</p>"
