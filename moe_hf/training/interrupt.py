"""Ctrl-C as a request: the first one is noted, the second one interrupts at once."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class InterruptRequest:
    """Within its `with` block the first SIGINT sets `requested`; the second does what it did before the block.

    Outside the main thread, where Python allows no handlers, and where SIGINT is ignored, it changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "InterruptRequest":
        self.requested = False
        self._previous = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        # None: a handler that was not set from Python and could not be put back.
        if not in_main_thread or self._previous in (signal.SIG_IGN, None):
            self._previous = None
        else:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Only noted: a handler may run in the midst of a step or of a save.
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        logger.warning("Interrupted: saving a checkpoint after this step and stopping. Ctrl-C again aborts at once.")
