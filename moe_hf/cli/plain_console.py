"""A console without colours: answers to stdout, everything else to stderr."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from moe_hf.base.printable import printable
from moe_hf.inference.console import Span, is_open_block

if sys.platform != "win32":
    # Its import alone gives input() line editing.
    import readline

PROMPT = "> "


class PlainConsole:
    """Reads lines from stdin, with or without a terminal. See `Console` for the methods."""

    colour = False
    can_prefill = False
    can_draw_markdown = False
    markdown = False

    def __init__(self) -> None:
        self._stdin_is_terminal = sys.stdin is not None and sys.stdin.isatty()
        self._stdout_is_terminal = sys.stdout.isatty()
        self._line_ended = False
        self._typed = False

    def ask(self, prefill: str = "") -> str:
        """One line, or a block of several; Ctrl-C throws away what was begun."""
        while True:
            text = ""
            try:
                text = self._line(PROMPT)
                while is_open_block(text):
                    text += "\n" + self._line("")
                return text
            except KeyboardInterrupt:
                print(file=sys.stderr)
                if not (text or self._typed):
                    raise

    def _line(self, prompt: str) -> str:
        if not self._stdin_is_terminal:
            return input()
        if not self._stdout_is_terminal:
            # input() would write the prompt among the answers.
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        with _on_interrupt(self._note_what_was_typed):
            try:
                return input(prompt)
            except EOFError:
                # Ctrl-D leaves the cursor behind the prompt.
                print(file=sys.stderr)
                raise

    def _note_what_was_typed(self) -> None:
        # Only here, in the signal handler, does readline still hold the line that Ctrl-C throws away.
        self._typed = sys.platform != "win32" and bool(readline.get_line_buffer())
        # After a handler that only returned, input() would read on.
        raise KeyboardInterrupt

    def answer(self, text: str) -> None:
        """Writes to stdout; on a terminal without control characters."""
        shown = printable(text) if self._stdout_is_terminal else text
        print(shown, end="", flush=True)
        if shown:
            self._line_ended = shown.endswith("\n")

    def end_answer(self) -> None:
        """Ends the last line, so that an empty answer is an empty line: a script counts on one per prompt."""
        if not self._line_ended:
            print(flush=True)
        self._line_ended = False

    def show(self, lines: list[list[Span]]) -> None:
        """Writes the text to stderr."""
        for line in lines:
            print(printable("".join(span.text for span in line)), file=sys.stderr)

    def notice(self, text: str) -> None:
        """Writes to stderr."""
        print(printable(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Writes to stderr."""
        self.notice(f"error: {text}")

    def interruptible(self, stop: threading.Event) -> contextlib.AbstractContextManager[None]:
        """Inside the `with`, Ctrl-C sets `stop` and does nothing else."""
        return interrupt_sets(stop)


def interrupt_sets(stop: threading.Event) -> contextlib.AbstractContextManager[None]:
    """Inside the `with`, SIGINT sets `stop` instead of raising KeyboardInterrupt; main thread only."""
    return _on_interrupt(stop.set)


@contextlib.contextmanager
def _on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda number, frame: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
