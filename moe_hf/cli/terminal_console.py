"""A console with colours, line editing, completion and history, for where both ends are a terminal."""

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from rich.cells import cell_len
from rich.text import Text

from moe_hf.base.printable import printable
from moe_hf.cli.markdown_answer import MarkdownAnswer
from moe_hf.cli.plain_console import interrupt_sets
from moe_hf.cli.screen import Screen
from moe_hf.inference.completion import completions
from moe_hf.inference.console import Span, is_open_block

PROMPT = "> "
CONTINUATION = ". "
PATH_COMMANDS = ("/save ", "/load ", "/model ")


class TerminalConsole:
    """Reads with prompt_toolkit and writes with rich. See `Console` for the methods.

    Args:
        words: what each command takes, for completion.
        history_file: where entries are kept between sessions; None keeps them for this session only.
        source, screen: stand-ins for the terminal, for tests.
    """

    can_prefill = True
    can_draw_markdown = True

    def __init__(
        self,
        words: Mapping[str, Sequence[str]],
        history_file: Path | None,
        source: Input | None = None,
        screen: Output | None = None,
    ) -> None:
        self._rich = Screen()
        # Sixteen colours are too few to tell experts apart.
        self.colour = self._rich.color_system in ("256", "truecolor") and not self._rich.no_color
        self.markdown = True
        self._wrap = WordWrap()
        self._drawing: MarkdownAnswer | None = None
        self._prompt: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUATION,
            completer=ChatCompleter(words),
            complete_while_typing=False,
            enable_history_search=True,
            history=open_history(history_file),
            key_bindings=_key_bindings(),
            input=source,
            output=screen,
        )

    def ask(self, prefill: str = "") -> str:
        """One entry, edited in place."""
        return self._prompt.prompt(default=prefill)

    def answer(self, text: str) -> None:
        """Writes the text without control characters: drawn as Markdown, or wrapped at words."""
        if self.markdown:
            self._drawing = self._drawing or MarkdownAnswer(self._rich)
            self._drawing.feed(printable(text))
            return
        # Straight to the file: rich would take the backspaces of a wrapped word out.
        self._rich.file.write(self._wrap.feed(printable(text), self._rich.width))
        self._rich.file.flush()

    def end_answer(self) -> None:
        """Ends the last line, if there is one to end."""
        if self._drawing is not None:
            self._drawing.end()
            self._drawing = None
        if self._wrap.column:
            self._rich.out("")
        self._wrap = WordWrap()

    def show(self, lines: list[list[Span]]) -> None:
        """Writes styled lines."""
        for line in lines:
            text = Text()
            for span in line:
                text.append(printable(span.text), f"black on {span.style}" if "#" in span.style else span.style)
            self._rich.print(text, overflow="fold")

    def notice(self, text: str) -> None:
        """Writes dimmed text."""
        self.show([[Span(text, "dim")]])

    def error(self, text: str) -> None:
        """Writes red text."""
        self._rich.print(Text(f"error: {printable(text)}", "red"), overflow="fold")

    def interruptible(self, stop: threading.Event) -> contextlib.AbstractContextManager[None]:
        """Inside the `with`, Ctrl-C sets `stop` and does nothing else."""
        return interrupt_sets(stop)


class WordWrap:
    """Breaks a text that comes piece by piece at blanks instead of inside words.

    A piece is written at once; a word that reaches the edge is erased there and begins the next line.

    Attributes:
        column: cells that the present line has.
    """

    def __init__(self) -> None:
        self.column = 0
        self._word = ""

    def feed(self, text: str, width: int) -> str:
        """What to write for the next piece of text, on a terminal of `width` columns."""
        # The last column stays free: in it, terminals differ in where the cursor goes.
        limit = max(width - 1, 2)
        written = []
        for character in text:
            blank = character in " \t"
            if character == "\t":
                character = " " * (8 - self.column % 8)
            cells = 0 if character == "\n" else cell_len(character)
            if self.column + cells > limit:
                written.append(self._next_line())
                if blank:
                    continue
            written.append(character)
            self.column = 0 if character == "\n" else self.column + cells
            # Chinese and its like, two cells wide, may be broken anywhere.
            self._word = "" if blank or character == "\n" or cells > 1 else self._word + character
        return "".join(written)

    def _next_line(self) -> str:
        cells = cell_len(self._word)
        if cells == self.column:
            # It fills the line: there is no better place than here.
            self.column, self._word = 0, ""
            return "\n"
        self.column = cells
        return "\b" * cells + " " * cells + "\n" + self._word


class ChatCompleter(Completer):
    """Offers commands, the words that they take, and files where a command takes a file."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = words
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """As prompt_toolkit asks for them."""
        line = document.text_before_cursor
        for command in PATH_COMMANDS:
            if line.startswith(command):
                yield from self._paths.get_completions(Document(line.removeprefix(command)), complete_event)
                return
        start, found = completions(line, self._words)
        for word in found:
            yield Completion(word, start_position=start - len(line))


def history_path() -> Path:
    """Where entries are kept: `moe_hf/chat_history` in the XDG state folder."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "moe_hf" / "chat_history"


def open_history(path: Path | None) -> History:
    """A history in that file, or in memory if it can't be written."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return _ForgivingFileHistory(path)


class _ForgivingFileHistory(FileHistory):
    """Goes on without the file when it can no longer be read or written, as on a full disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        with contextlib.suppress(OSError):
            yield from super().load_history_strings()

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            # Whoever emptied the state folder meanwhile gets a private file again.
            self._path.touch(mode=0o600)
            super().store_string(string)


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    # A search (Ctrl-R) has its own meaning of these keys: take what was found, give up the search.
    @bindings.add("enter", filter=~is_searching)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            # Enter on an offered word takes the word.
            buffer.complete_state = None
        elif is_open_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=~is_searching)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c", filter=~is_searching)
    def clear_or_interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings
