"""The console without colours keeps answers apart from remarks."""

import os
import signal
import sys
import threading
import time

import pytest

from moe_hf.cli.plain_console import PlainConsole, interrupt_sets


@pytest.mark.parametrize(("pieces", "line"), [([], "\n"), (["a", "b"], "ab\n"), (["a", "\n"], "a\n"), ([""], "\n")])
def test_every_answer_ends_its_line_even_an_empty_one(pieces, line, capsys):
    console = PlainConsole()
    for _ in range(2):
        for piece in pieces:
            console.answer(piece)
        console.end_answer()
    assert capsys.readouterr().out == 2 * line


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
