"""What Tab offers behind the cursor."""

import pytest

from moe_hf.inference.commands import COMMANDS
from moe_hf.inference.completion import completions


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("/s", ["/system ", "/set ", "/save", "/stats"]),
        ("/set te", ["temperature="]),
        ("/experts o", ["on", "off"]),
        ("/set top_k=", ["top_k=0", "top_k=1", "top_k=20", "top_k=50"]),
        ("/set top_k=5 do_sample=", ["do_sample=true", "do_sample=false"]),
        ("/set top_k=5 te", ["temperature="]),
        ("/set seed=r", ["seed=random"]),
        ("/set seed=random", []),
        ("/system ", ["-"]),
        ("/system - x", []),
        ("hello", []),
        ("/undo ", []),
    ],
)
def test_tab_offers_commands_and_their_words(line, offered):
    assert completions(line, {name: command.words for name, command in COMMANDS.items()})[1] == offered


def test_what_is_offered_replaces_the_word_before_the_cursor() -> None:
    choices = {"set": ["top_k=", "top_k=5"], "undo": []}
    assert completions("/set do=1 to", choices) == (10, ["top_k="])
    assert completions("/u", choices) == (0, ["/undo"])
    assert completions("first\n/s", choices) == (8, [])
