import json

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_session import ChatSession, Exchange
from moe_hf.inference.commands import COMMANDS
from moe_hf.inference.completion import completions
from moe_hf.inference.repl import run
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.inference.transcript import TranscriptFile, read_transcript
from moe_hf.text.tokenizers import byte_tokenizer

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=24)


@pytest.fixture
def talk(talker, babbler, list_console):
    """Runs a chat over the entries given and returns it, for its session and what its console showed."""

    def load(source):
        if source != "babbler":
            raise CheckpointError(f"there is no folder {source}")
        return babbler

    def talk(*entries, model=talker, settings=GREEDY, transcript=None):
        chat = Chat(ChatSession(model, settings), list_console(list(entries)), load, transcript)
        run(chat)
        return chat

    return talk


def test_a_line_is_answered_and_the_speed_is_shown(talk):
    chat = talk("hi", "/reset", "fish?")
    assert chat.console.answers == ["hello you", "a carp é"]
    assert "10 tokens" in chat.console.notices[0]
    assert "tok/s" in chat.console.notices[0]


def test_every_command_of_the_issue_is_there_and_help_lists_it(talk):
    names = "help reset undo retry edit system set save load experts stats model exit".split()
    assert list(COMMANDS) == names
    shown = talk("/help").console.tables[0]
    assert all(f"/{name}" in shown for name in names)


def test_an_unknown_command_names_the_nearest_and_the_chat_goes_on(talk):
    console = talk("/rest", "hi").console
    assert "unknown command /rest; did you mean 'reset'" in console.errors[0]
    assert console.answers == ["hello you"]


def test_two_slashes_begin_a_message_with_a_slash(talk):
    assert talk("//usr").session.last_question == "/usr"


def test_a_block_is_one_message_even_with_a_slash_in_front(talk):
    assert talk('"""/hi\nthere"""').session.last_question == "/hi\nthere"


def test_an_empty_line_says_nothing(talk):
    assert talk("", "   ", '""""""').session.messages == []


def test_exit_leaves_at_once(talk):
    assert talk("/exit", "hi").console.answers == []


def test_ctrl_c_twice_at_the_prompt_leaves_and_once_does_not(talk):
    console = talk(KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "fish?").console
    assert console.answers == ["hello you"]
    assert [notice for notice in console.notices if "once more" in notice] == console.notices[::2]


def test_undo_reset_and_retry(talk):
    chat = talk("hi", "fish?", "/undo", "/retry")
    assert [exchange.user for exchange in chat.session.exchanges] == ["hi"]
    assert "dropped: fish?" in chat.console.notices
    assert any("greedy would repeat itself" in notice for notice in chat.console.notices)
    assert talk("hi", "/reset").session.messages == []


def test_edit_with_text_replaces_the_last_question(talk):
    chat = talk("hi", "/edit fish?")
    assert chat.session.exchanges == [Exchange("fish?", "a carp é")]


def test_edit_alone_offers_the_last_question(talk):
    chat = talk("hi", "/edit", lambda prefill: prefill + "!")
    assert [exchange.user for exchange in chat.session.exchanges] == ["hi!"]


def test_an_edit_given_up_changes_nothing(talk):
    chat = talk("hi", "/edit", KeyboardInterrupt)
    assert chat.session.exchanges == [Exchange("hi", "hello you")]
    assert chat.console.notices[-1] == "not edited"


def test_system_is_set_shown_and_removed(talk):
    chat = talk("/system be kind", "/system", "/system -", "/system")
    assert chat.console.notices[1::2] == ["system message: be kind", "system message: (none)"]


def test_set_changes_several_settings_or_none(talk):
    chat = talk("/set top_k=3 seed=7", "/set top_p 0.5", "/set top_k=1 top_p=9")
    assert chat.session.settings == GREEDY._replace(top_k=3, seed=7, top_p=0.5)
    assert "top_p must be a number in (0, 1], got '9'" in chat.console.errors[0]


def test_set_alone_shows_all_settings(talk):
    assert "max_new_tokens=24" in talk("/set").console.tables[0]


def test_stats_shows_what_replays_an_answer(talk):
    table = talk("/set seed=11", "hi", "/stats").console.tables[0]
    for part in ("parameters", "active per token", "10 tokens in", "tok/s", "15 of 96 tokens", "MiB", "/set seed=11"):
        assert part in table


def test_save_adds_one_line_per_conversation(talk, tmp_path):
    path = tmp_path / "t.jsonl"
    chat = talk("hi", f"/save {path}", "fish?", f"/save {path}", "/reset", "hi", f"/save {path}")
    assert chat.console.errors == []
    assert [len(messages) for messages in read_transcript(path)] == [4, 2]


def test_load_goes_on_where_a_conversation_ended(talk, tmp_path):
    path = tmp_path / "t.jsonl"
    talk("hi", "fish?", f"/save {path}")
    chat = talk(f"/load {path}", "/undo")
    assert chat.session.exchanges == [Exchange("hi", "hello you")]


def test_a_bad_transcript_is_an_error_and_keeps_the_conversation(talk, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("{")
    chat = talk("hi", f"/load {path}", "/load", "/save")
    assert len(chat.console.errors) == 3
    assert chat.session.exchanges == [Exchange("hi", "hello you")]


def test_the_transcript_follows_every_answer_undo_and_reset(talk, tmp_path):
    path = tmp_path / "auto.jsonl"
    talk("hi", "fish?", "/undo", "/reset", "fish?", transcript=TranscriptFile(path))
    assert [json.loads(line)["messages"][-1]["content"] for line in path.read_text().splitlines()] == [
        "hello you",
        "a carp é",
    ]


def test_experts_marks_each_token_and_shows_the_load_of_each_layer(talk):
    chat = talk("/experts on", "hi", "/experts 0", "hi", "/experts off", "hi", "/experts 1")
    assert len(chat.console.tables) == 2
    lines = chat.console.tables[0].splitlines()
    top = chat.replies[0].routing.top_experts(1)
    # " h" is one piece of two tokens, the other eight are one token each.
    assert lines[0].startswith(f"h{{{top[0]},{top[1]}}}e{{{top[2]}}}")
    assert lines[1].startswith("layer 2:")
    assert [line[:8] for line in lines[3:]] == ["layer  0", "layer  2"]
    assert chat.console.tables[1].splitlines()[1].startswith("layer 0:")
    assert "sparse layer (0, 2), got '1'" in chat.console.errors[0]


def test_a_dense_model_has_no_experts_to_show(talk, babbler):
    chat = talk("/experts on", "hi", model=babbler)
    assert "dense: it has no experts" in chat.console.notices[0]
    assert chat.console.tables == []


def test_model_is_shown_and_changed_and_a_wrong_one_keeps_the_old(talk):
    chat = talk("/model", "/experts on", "hi", "/model nowhere", "/model babbler", "hi")
    assert chat.console.notices[0] == "model: talker"
    assert chat.console.errors == ["there is no folder nowhere"]
    assert (chat.session.model.name, chat.session.record_routing) == ("babbler", False)
    assert len(chat.session.exchanges) == 2


def test_a_full_context_is_told_once_and_counted_by_stats(talk, babbler):
    chat = talk(*["some words to say"] * 5, "/stats", "/reset", *["some words to say"] * 5, model=babbler)
    told = [notice for notice in chat.console.notices if "no longer sees" in notice]
    assert len({reply.num_unseen for reply in chat.replies} - {0}) >= 2
    assert len(told) == 2
    assert f"the oldest {chat.replies[4].num_unseen} messages" in chat.console.tables[0]


@pytest.mark.parametrize(
    "fault", ["{{ 1 + 'a' }}", "{{ raise_exception('no') }}", "{{ messages[0]['x']['y'] }}", "{% if %}"]
)
def test_the_chat_outlives_a_template_that_fails(talk, babbler, fault):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = fault
    chat = talk("hi", "/system s", "/stats", model=CausalTextModel(babbler.model, tokenizer, "odd"))
    assert [("refuses this conversation" in error) for error in chat.console.errors] == [True, True]
    assert len(chat.console.tables) == 1


def test_the_chat_outlives_an_error_of_any_kind(talk, talker, monkeypatch):
    def broken(messages):
        raise KeyError("a foreign tokenizer")

    monkeypatch.setattr(talker, "encode", broken)
    console = talk("hi", "/stats").console
    assert "a foreign tokenizer" in console.errors[0]
    assert len(console.tables) == 1


def test_a_message_that_is_too_long_is_an_error_and_the_chat_goes_on(talk):
    console = talk("x" * 200, "hi").console
    assert "context holds 96" in console.errors[0]
    assert console.answers == ["hello you"]


def test_bytes_that_are_no_text_are_replaced(talk):
    assert talk("hi \udcff").session.last_question == "hi ?"


def test_a_cut_off_answer_is_shown_as_such(talk):
    assert "cut off at max_new_tokens" in talk("/set max_new_tokens=3", "hi").console.notices[-1]


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
