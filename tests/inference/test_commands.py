"""Each command of a chat does what its line of help says, or says why not."""

from moe_hf.inference.chat_session import Exchange
from moe_hf.inference.commands import COMMANDS, shortened
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.transcript import read_transcript

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=24)


def test_every_command_is_there_and_help_lists_it(talk):
    names = "help reset undo retry edit system set save load experts markdown stats model exit".split()
    assert list(COMMANDS) == names
    shown = talk("/help").console.tables[0]
    assert all(f"/{name}" in shown for name in names)


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


def test_a_text_is_shortened_to_one_line() -> None:
    assert shortened("one\n two", width=7) == "one two"
    assert shortened("one two", width=6) == "one t…"


def test_markdown_is_turned_on_and_off_where_a_terminal_can_draw_it(talk, list_console):
    chat = talk("/markdown off", "/markdown", "/markdown soon")
    assert chat.console.markdown
    assert chat.console.notices == ["answers are shown as the model writes them", "answers are drawn as Markdown"]
    assert chat.console.errors == ["/markdown takes on or off, got 'soon'"]
    list_console.can_draw_markdown = False
    try:
        chat = talk("/markdown off")
    finally:
        list_console.can_draw_markdown = True
    assert "there is no terminal that could draw Markdown" in chat.console.notices[-1]
