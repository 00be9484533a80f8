"""What each browser tab talks to: a conversation of its own with the one model that all tabs share."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from moe_hf.inference.answering import TextModel
from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.live_answer import Update, live_answer
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.settings import GenerationSettings

MOST_TABS = 256


class Tab:
    """One tab's conversation.

    Attributes:
        session: the conversation.
        cancelled: set to end the answer that is under way.
        routing: of the last answer, or of the one under way so far.
    """

    def __init__(self, session: ChatSession, one_at_a_time: threading.Lock) -> None:
        self.session = session
        self.cancelled = threading.Event()
        self.routing: RoutingTrace | None = None
        self._one_at_a_time = one_at_a_time
        self._at_rest = threading.Event()
        self._at_rest.set()

    def answer(self, generate: Callable[[Callable[[str], None]], Reply]) -> Iterator[Update]:
        """As `live_answer`, once the answers of other tabs have ended."""
        self.cancelled.clear()
        self._at_rest.clear()
        self.session.record_routing = bool(self.session.model.sparse_layers)

        def in_turn(show: Callable[[str], None]) -> Reply:
            # In the thread that answers: whoever drops the updates half read does not keep the model.
            try:
                with self._one_at_a_time:
                    return generate(show)
            finally:
                self._at_rest.set()

        for update in live_answer(self.session, in_turn, self.cancelled):
            self.routing = update.routing
            yield update

    @property
    def is_unused(self) -> bool:
        """Whether nothing is lost with it."""
        return self._at_rest.is_set() and not self.session.exchanges and self.session.pending is None

    def configure(self, system: str, settings: GenerationSettings) -> None:
        """Takes the system message (empty: none) and the settings for what is asked next.

        Raises:
            ConfigError: the model's chat template knows no system message; nothing is taken then.
        """
        if (system.strip() or None) != self.session.system:
            self.session.set_system(system.strip() or None)
        self.session.settings = settings

    def undo(self) -> str | None:
        """Ends the answer that is under way, drops the last question with its answer, and returns the question."""
        self._come_to_rest()
        if self.session.last_question is None:
            return None
        self.routing = None
        return self.session.undo()

    def reset(self) -> None:
        """Ends the answer that is under way and begins a new conversation."""
        self._come_to_rest()
        self.session.reset()
        self.routing = None

    def _come_to_rest(self) -> None:
        self.cancelled.set()
        # It ends after the current token; nothing but that thread may touch the conversation meanwhile.
        self._at_rest.wait()


class Tabs:
    """The tabs that are open, by the name that the page gives each; where they are too many, those go first in
    which nothing was asked, then those used least recently.

    Args:
        model: answers all of them, one at a time.
        settings: of new conversations.
    """

    def __init__(self, model: TextModel, settings: GenerationSettings) -> None:
        self.model = model
        self.settings = settings
        self._tabs: OrderedDict[str, Tab] = OrderedDict()
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def of(self, name: str) -> Tab:
        """The tab of that name, a new one if there is none."""
        with self._lock:
            if name not in self._tabs:
                self._tabs[name] = Tab(ChatSession(self.model, self.settings), self._one_at_a_time)
            self._tabs.move_to_end(name)
            if len(self._tabs) > MOST_TABS:
                # All but the one that is asked for, those used least recently first.
                others = list(self._tabs)[:-1]
                forgotten = next((other for other in others if self._tabs[other].is_unused), others[0])
                self._tabs.pop(forgotten).cancelled.set()
            return self._tabs[name]

    def stop(self, name: str) -> None:
        """Ends the answer of that tab, if one is under way; its conversation stays."""
        with self._lock:
            tab = self._tabs.get(name)
        if tab is not None:
            tab.cancelled.set()
