import io
import json
import os
import pty
import re
import select
import signal
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.base.printable import json_line
from moe_hf.cli.chat import main
from moe_hf.cli.chat_script import answer_prompts, reply_record
from moe_hf.cli.plain_console import PlainConsole, interrupt_sets
from moe_hf.cli.terminal_console import ChatCompleter, TerminalConsole, history_path, open_history
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_session import ChatSession, Reply
from moe_hf.inference.commands import COMMANDS
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.streaming import Piece
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.inference.transcript import read_transcript
from moe_hf.text.tokenizers import byte_tokenizer

REPOSITORY = Path(__file__).parents[2]
SHORT = ["--max_new_tokens", "5", "--device", "cpu", "--seed", "1"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model with random weights, which babbles until it is stopped."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    shape |= {"moe_intermediate_size": 16, "mlp_layer_types": ["sparse", "dense"], "max_position_embeddings": 4096}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    folder = tmp_path_factory.mktemp("runs") / "first"
    model = GPT2WithMoE(create_moe_config("tiny", vocab_size=len(tokenizer), **shape, **ids))
    # Whatever the weights say, it is letters: none ends the answer, and each shows.
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_lowercase))
    model.generation_config.suppress_tokens = sorted(set(range(model.config.vocab_size)) - set(letters))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def stdin(monkeypatch):
    """Sets what stands on stdin, which is no terminal."""

    def set_stdin(content: str | bytes):
        raw = content if isinstance(content, bytes) else content.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))

    set_stdin("")
    return set_stdin


def test_one_shot_writes_only_the_answer_to_stdout(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", *SHORT, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(["--model", str(model_folder), "-p", "hi", *SHORT]) == 0
    shown = capsys.readouterr()
    assert len(text) == 5
    assert shown.out == text + "\n"
    assert "[5 tokens, " in shown.err
    assert "cut off at max_new_tokens" in shown.err


@pytest.mark.parametrize(("pieces", "line"), [([], "\n"), (["a", "b"], "ab\n"), (["a", "\n"], "a\n"), ([""], "\n")])
def test_every_answer_ends_its_line_even_an_empty_one(pieces, line, capsys):
    console = PlainConsole()
    for _ in range(2):
        for piece in pieces:
            console.answer(piece)
        console.end_answer()
    assert capsys.readouterr().out == 2 * line


def test_json_holds_what_a_script_needs(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", "-p", "and?", *SHORT, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["prompt"], first["tokens"], first["finish_reason"], first["seed"]) == ("hi", 5, "max_new_tokens", 1)
    assert first["seconds"] > 0
    # The second prompt is the next turn of the same conversation.
    assert second["prompt_tokens"] > first["prompt_tokens"] + len("and?")


def test_the_newest_run_is_taken_and_the_architecture_restricts_it(model_folder, capsys, stdin):
    runs = ["--runs_dir", str(model_folder.parent), "-p", "hi", "--json", *SHORT]
    assert main(["--architecture", "moe", *runs]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(model_folder)
    assert main(["--architecture", "dense", *runs]) == 2
    assert "python train.py --architecture dense" in capsys.readouterr().err


def test_all_of_stdin_is_one_prompt(model_folder, capsys, stdin):
    stdin("two\nlines\n")
    assert main(["--model", str(model_folder), "--json", *SHORT]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "two\nlines"


def test_per_line_each_line_is_a_conversation_of_its_own(model_folder, capsys, stdin):
    stdin("one\n\none\n")
    assert main(["--model", str(model_folder), "--per_line", "--json", *SHORT]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == second["text"]
    assert first["prompt_tokens"] == second["prompt_tokens"]


def test_a_dash_is_stdin_among_other_prompts(model_folder, capsys, stdin):
    stdin("from stdin")
    assert main(["--model", str(model_folder), "--json", "-p", "first", "-p", "-", *SHORT]) == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["first", "from stdin"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", ""], "nothing to answer"),
        ([], "nothing to answer"),
        (["-p", "hi", "--temperature", "0"], "temperature must be"),
        (["-p", "x" * 5000], "context holds 4096"),
        (["-p", "hi", "--load", "none.jsonl"], "can't read the transcript none.jsonl"),
        (["-p", "hi", "--transcript", "no/such/folder/t.jsonl"], "can't write the transcript"),
        (["-p", "hi", "--model", "./nowhere"], "there is no folder ./nowhere"),
        (["-p", "hi", "--architecture", "dense"], "is of another kind"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_a_status_of_2(arguments, message, model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), *SHORT, *arguments]) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_stdin_that_is_no_text_is_refused(model_folder, capsys, stdin):
    stdin(b"\xff\xfe")
    assert main(["--model", str(model_folder), *SHORT]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_folder_without_weights_is_one_line_too(tmp_path, capsys, stdin):
    (tmp_path / "config.json").write_text("{}")
    assert main(["--model", str(tmp_path), "-p", "hi"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_transcript_and_load_carry_a_conversation_over(model_folder, capsys, stdin, tmp_path):
    path = tmp_path / "t.jsonl"
    assert main(["--model", str(model_folder), "-p", "hi", "--transcript", str(path), "--system", "s", *SHORT]) == 0
    assert [message["role"] for message in read_transcript(path)[0]] == ["system", "user", "assistant"]
    capsys.readouterr()
    assert main(["--model", str(model_folder), "-p", "more", "--load", str(path), "--json", *SHORT]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] > len("s hi more")


def test_plain_chats_over_a_pipe_with_commands(model_folder, capsys, stdin):
    stdin('hi\n/undo\n"""two\nlines"""\n/experts on\n/nonsense\nlast\n/exit\nnever\n')
    assert main(["--model", str(model_folder), "--plain", *SHORT]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("[5 tokens") == 3
    for remark in ("dropped: hi", "experts on", "error: unknown command /nonsense", "layer  0 "):
        assert remark in shown.err
        assert remark not in shown.out


def test_experts_of_a_one_shot_answer_go_to_stderr(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", "--experts", *SHORT]) == 0
    shown = capsys.readouterr()
    assert "layer  0 " in shown.err
    assert "layer  0 " not in shown.out


def test_json_holds_the_experts_if_they_are_asked_for(model_folder, capsys, stdin):
    assert main(["--model", str(model_folder), "-p", "hi", "--experts", "--json", *SHORT]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["experts"]
    # The fifth token was never fed back.
    assert (layer["layer"], len(layer["top_expert"])) == (0, 4)
    assert sum(layer["load"]) == pytest.approx(1)


def test_json_with_experts_names_the_text_of_each_token():
    experts = torch.zeros(1, 3, 1, dtype=torch.long)
    trace = RoutingTrace((Piece("a", 1), Piece("\u00e9", 2), Piece("\x9b", 1)), (0,), 2, experts, torch.ones(1, 3, 1))
    record = reply_record("p", "m", Reply("a\u00e9\x9b", 4, 9, 0.5, "stop", 7, 0, trace))
    assert record["token_texts"] == ["a", "", "\u00e9", "\x9b"]
    assert json.loads(json_line(record))["text"] == "a\u00e9\x9b"
    assert "\x9b" not in json_line(record)


def test_ctrl_c_in_a_script_is_no_success(model_folder, capsys, stdin):
    class InterruptedConsole(PlainConsole):
        def answer(self, text):
            super().answer(text)
            os.kill(os.getpid(), signal.SIGINT)

    model = CausalTextModel.load(str(model_folder), device="cpu")
    chat = Chat(ChatSession(model), InterruptedConsole(), CausalTextModel.load)
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(chat, ["hi", "never"], as_json=False, per_line=False)
    assert "interrupted" in capsys.readouterr().err
    assert len(chat.replies) == 1


def test_ctrl_c_while_answering_sets_the_event_and_raises_nothing():
    stop = threading.Event()
    with interrupt_sets(stop):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
    assert stop.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_model_can_not_steer_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console = PlainConsole()
    console.answer("a\x1b[2Jb\tc\x07")
    console.end_answer()
    assert capsys.readouterr().out == "a[2Jb\tc\n"


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
