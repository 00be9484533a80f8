"""In a terminal entries are edited, kept and completed, and answers wrap at words."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from moe_hf.cli.terminal_console import ChatCompleter, TerminalConsole, history_path, open_history
from moe_hf.inference.commands import COMMANDS

REPOSITORY = Path(__file__).parents[2]


def type_at_terminal(keys, prefill="", history_file=None):
    words = {name: command.words for name, command in COMMANDS.items()}
    with create_pipe_input() as source:
        console = TerminalConsole(words, history_file, source=source, screen=DummyOutput())
        source.send_text(keys)
        return console.ask(prefill)


@pytest.mark.parametrize(
    ("keys", "entry"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', '"""one\ntwo"""'),
        ("\x1b[200~one\ntwo\x1b[201~\r", "one\ntwo"),
        ("thrown away\x03kept\r", "kept"),
        # Ctrl-R: Enter takes what was found, to be edited; Ctrl-C gives the search up, and only that.
        ("\x12first\r!\r", "!first words"),
        ("typed \x12first\x03more\r", "typed more"),
    ],
)
def test_what_is_typed_becomes_the_entry(keys, entry, tmp_path):
    history = open_history(tmp_path / "history")
    for earlier in ("first words", "last words"):
        history.append_string(earlier)
    assert type_at_terminal(keys, history_file=tmp_path / "history") == entry


def screen_after(pieces, capsys, monkeypatch):
    """The lines on a terminal after the pieces of an answer; blanks at their ends do not show."""
    monkeypatch.setenv("COLUMNS", "11")
    with create_pipe_input() as source:
        console = TerminalConsole({}, None, source=source, screen=DummyOutput())
    console.markdown = False
    lines = [[]]
    for piece in pieces:
        console.answer(piece)
    for character in capsys.readouterr().out:
        if character == "\n":
            lines.append([])
            column = 0
        elif character == "\b":
            column -= 1
        else:
            column = column if lines[-1] else 0
            lines[-1][column : column + 1] = [character]
            column += 1
    return ["".join(line).rstrip() for line in lines]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("the quick brown fox jumps", ["the quick", "brown fox", "jumps"]),
        ("ten letters", ["ten", "letters"]),
        ("nine char", ["nine char"]),
        ("nine chars", ["nine chars"]),
        ("a\nbb ccc dddd", ["a", "bb ccc", "dddd"]),
        ("abcdefghijklmnop", ["abcdefghij", "klmnop"]),
        ("abcdefghij klm", ["abcdefghij", "klm"]),
        ("ab\tc d", ["ab      c", "d"]),
        ("\u4f60\u597d\u4f60\u597d\u4f60\u597d", ["\u4f60\u597d\u4f60\u597d\u4f60", "\u597d"]),
    ],
)
def test_an_answer_wraps_at_words_however_it_is_cut(text, lines, capsys, monkeypatch):
    for size in (1, 3, 100):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert screen_after(pieces, capsys, monkeypatch) == lines


@pytest.mark.parametrize(("system", "coloured"), [("standard", False), ("256", True), ("truecolor", True)])
def test_sixteen_colours_mark_experts_by_their_number(system, coloured, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", {"standard": "xterm", "256": "xterm-256color", "truecolor": "xterm-direct"}[system])
    monkeypatch.setenv("COLORTERM", "truecolor" if system == "truecolor" else "")
    with create_pipe_input() as source:
        console = TerminalConsole({}, None, source=source, screen=DummyOutput())
    assert (console._rich.color_system, console.colour) == (system, coloured)


@pytest.mark.parametrize(("key", "raised"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_ctrl_c_and_ctrl_d_with_nothing_typed(key, raised):
    with pytest.raises(raised):
        type_at_terminal(key)


@pytest.mark.parametrize(
    ("line", "offered"),
    [("/un", ["/undo"]), ("/set tem", ["temperature="]), ("/load {}/t", ["ranscript.jsonl"]), ("/undo {}/t", [])],
)
def test_tab_offers_commands_keys_and_files(line, offered, tmp_path):
    (tmp_path / "transcript.jsonl").touch()
    completer = ChatCompleter({name: command.words for name, command in COMMANDS.items()})
    found = completer.get_completions(Document(line.format(tmp_path)), CompleteEvent())
    assert [completion.text for completion in found] == offered


def test_a_prefilled_text_is_edited_in_place():
    assert type_at_terminal("\x7f?\r", prefill="who!") == "who?"


def test_entries_are_kept_between_sessions(tmp_path):
    path = tmp_path / "state" / "history"
    type_at_terminal("first entry\r", history_file=path)
    assert type_at_terminal("\x1b[A\r", history_file=path) == "first entry"


def test_a_history_that_can_not_be_written_is_harmless(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert type_at_terminal("hi\r", history_file=tmp_path / "file" / "history") == "hi"
    history = open_history(tmp_path / "history")
    (tmp_path / "history").unlink()
    (tmp_path / "history").mkdir()
    history.append_string("goes on")
    assert history.get_strings() == ["goes on"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "moe_hf" / "chat_history"


class Terminal:
    """A child process on a pseudo terminal."""

    def __init__(self, command, environment):
        self.master, slave = pty.openpty()
        # A session of its own, whose terminal this becomes, so that Ctrl-C reaches the child and not the tests.
        take_terminal = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", take_terminal, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, pattern, seconds=60):
        """Everything up to the pattern, which is cut off what was seen."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come; seen: {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.seen += os.read(self.master, 65536).decode("utf-8", errors="replace")
        self.seen = self.seen[found.end() :]

    def send(self, text):
        os.write(self.master, text.encode())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_in_a_terminal_ctrl_c_stops_the_answer_and_keeps_the_session(model_folder, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "xterm-256color",
        # A terminal would answer where its cursor is; this one is only a pipe.
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(REPOSITORY / "chat.py"), "--model", str(model_folder)]
    terminal = Terminal([*command, "--max_new_tokens", "4000"], environment)
    # prompt_toolkit switches bracketed paste on when it begins to read, and off when it has an entry.
    reads, has_read = r"\x1b\[\?2004h", r"\x1b\[\?2004l"
    try:
        terminal.wait_for(r"/help\s+lists")
        terminal.wait_for(reads)
        terminal.send("hi\r")
        terminal.wait_for(has_read)
        # Escape sequences are shorter than this: it is the answer that runs.
        terminal.wait_for("[^\x1b]{40}")
        terminal.send("\x03")
        terminal.wait_for(r"\[\d+ tokens, .* interrupted\]")
        terminal.wait_for(reads)
        terminal.send("/stats\r")
        terminal.wait_for("ended by.*interrupted")
        terminal.wait_for(reads)
        terminal.send("\x03")
        terminal.wait_for("once more to leave")
        terminal.wait_for(reads)
        terminal.send("\x03")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()


def test_an_answer_is_drawn_as_markdown_unless_it_is_not_wanted(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with create_pipe_input() as source:
        console = TerminalConsole({}, None, source=source, screen=DummyOutput())
    for console.markdown in (True, False, True):
        console.answer("some **bold** ")
        console.answer("words")
        console.end_answer()
    shown = capsys.readouterr().out
    assert shown.count("**bold**") == 1
    assert shown.count("bold") >= 3
