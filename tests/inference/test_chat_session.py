import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.inference.chat_session import ChatSession, Exchange
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import byte_tokenizer

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=24)


def ignore(text):
    pass


def test_an_answer_is_streamed_and_kept(session):
    pieces = []
    reply = session.ask("fish?", pieces.append)
    assert reply.text == "".join(pieces) == "a carp é"
    assert len(pieces) == 8
    assert (reply.finish_reason, reply.num_tokens) == ("stop", 10)
    assert session.messages == [{"role": "user", "content": "fish?"}, {"role": "assistant", "content": "a carp é"}]


def test_ending_on_max_new_tokens_is_said(session):
    session.settings = GREEDY._replace(max_new_tokens=4)
    reply = session.ask("hi", ignore)
    assert (reply.text, reply.finish_reason) == ("hel", "max_new_tokens")


def test_the_seed_of_a_reply_replays_it(talker):
    session = ChatSession(talker, GenerationSettings(temperature=4.0, top_k=0, top_p=1.0, max_new_tokens=9))
    first = session.ask("hi", ignore)
    session.undo()
    session.settings = session.settings._replace(seed=first.seed)
    assert session.ask("hi", ignore).text == first.text


def test_retry_replaces_the_answer_with_a_new_seed(talker):
    session = ChatSession(talker, GenerationSettings(temperature=9.0, top_k=0, top_p=1.0, max_new_tokens=9, seed=1))
    first = session.ask("hi", ignore)
    second = session.retry(ignore)
    assert second.seed != first.seed
    assert second.text != first.text
    assert session.exchanges == [Exchange("hi", second.text)]


def test_retry_of_a_greedy_answer_is_sampled(babbler):
    # Random weights make every token about equally likely: two samples of 24 tokens are never the same.
    session = ChatSession(babbler, GREEDY._replace(temperature=2.0))
    first = session.ask("hi", ignore)
    assert session.retry(ignore).text != first.text
    assert not session.settings.do_sample


def test_interruption_keeps_the_partial_answer_and_the_session(session):
    shown = []

    def stop_after_four(text):
        shown.append(text)
        if len(shown) == 4:
            session.stop.set()

    reply = session.ask("hi", stop_after_four)
    # generate looks at the event after each token, before it hands that token over: one more comes.
    assert (reply.text, reply.finish_reason) == ("hello", "interrupted")
    assert session.exchanges == [Exchange("hi", "hello")]
    assert session.ask("fish?", ignore).finish_reason != "interrupted"


def test_a_retry_that_fails_keeps_the_old_answer(session):
    session.ask("hi", ignore)

    def broken(text):
        raise OSError("the screen is gone")

    with pytest.raises(OSError, match="the screen"):
        session.retry(broken)
    assert session.exchanges == [Exchange("hi", "hello you")]
    assert session.pending is None


def test_a_question_whose_answer_failed_can_be_retried_undone_and_seen(session):
    def broken(text):
        raise OSError("the screen is gone")

    with pytest.raises(OSError, match="the screen"):
        session.ask("hi", broken)
    assert session.messages == [{"role": "user", "content": "hi"}]
    session.retry(ignore)
    assert session.exchanges[0].user == "hi"
    assert (session.undo(), session.messages) == ("hi", [])


def test_undo_goes_back_one_exchange_at_a_time(session):
    session.ask("hi", ignore)
    session.ask("fish?", ignore)
    assert (session.undo(), session.undo()) == ("fish?", "hi")
    with pytest.raises(ConfigError, match="nothing to undo"):
        session.undo()


def test_the_system_message_comes_first_and_survives_reset(session):
    session.set_system("be kind")
    session.ask("hi", ignore)
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant"]
    session.reset()
    assert session.messages == [{"role": "system", "content": "be kind"}]


def test_a_system_message_that_the_template_refuses_leaves_the_old_one(babbler):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m['content'] == 'bad' %}{{ raise_exception('no') }}"
    tokenizer.chat_template += "{% endif %}{{ m['content'] }}{% endfor %}"
    session = ChatSession(CausalTextModel(babbler.model, tokenizer, "strict"), GREEDY)
    session.set_system("good")
    with pytest.raises(ConfigError, match="refuses"):
        session.set_system("bad")
    assert session.system == "good"


def test_a_full_context_drops_the_oldest_exchanges_and_keeps_the_system_message(babbler):
    session = ChatSession(babbler, GREEDY)
    session.set_system("SYS")
    for number in range(6):
        reply = session.ask(f"question {number}", ignore)
        ids, unseen = session.encode_question("next")
        text = babbler.tokenizer.decode(ids)
        assert len(ids) + 24 <= babbler.context_limit
        assert text.startswith("<|system|> SYS")
        assert text.count("<|user|>") == len(session.exchanges) - unseen + 1
    assert reply.num_unseen >= 4
    assert len(session.exchanges) == 6


def test_prompt_and_answer_never_exceed_the_context(babbler):
    session = ChatSession(babbler, GREEDY._replace(max_new_tokens=1000))
    reply = session.ask("x" * 80, ignore)
    assert reply.num_prompt_tokens + reply.num_tokens == babbler.context_limit == 96
    assert reply.finish_reason == "context"


def test_a_question_longer_than_the_context_is_refused_and_not_kept(babbler):
    session = ChatSession(babbler, GREEDY)
    with pytest.raises(ConfigError, match="has 203 tokens with its frame, the model's context holds 96"):
        session.ask("x" * 200, ignore)
    assert session.messages == []


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(session, question):
    with pytest.raises(ConfigError, match="empty"):
        session.ask(question, ignore)


def test_retry_and_undo_need_a_question(session):
    with pytest.raises(ConfigError, match="nothing to retry"):
        session.retry(ignore)


def test_a_loaded_conversation_goes_on(session):
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "hi"},
    ]
    session.load(messages)
    assert (session.system, session.exchanges, session.pending) == ("s", [Exchange("a", "b")], "hi")
    assert session.messages == messages


def test_the_work_for_an_answer_does_not_grow_with_the_conversation(babbler, monkeypatch):
    rendered = []
    encode = babbler.encode
    monkeypatch.setattr(babbler, "encode", lambda messages: rendered.append(len(messages)) or encode(messages))
    found = {}
    for count in (8, 800):
        session = ChatSession(babbler, GREEDY)
        session.exchanges = [Exchange(f"q{number % 10}", f"a{number % 10}") for number in range(count)]
        rendered.clear()
        ids, unseen = session.encode_question("next")
        found[count] = (ids, count - unseen, sum(rendered))
        # One more would not have fitted.
        assert len(ids) + 24 <= babbler.context_limit
        assert len(encode(session._messages(unseen - 1, "next"))) + 24 > babbler.context_limit
    assert found[800][1] == found[8][1] < 8
    assert found[800][2] <= found[8][2] + 16


def test_an_earlier_question_can_be_asked_differently(session):
    for question in ("hi", "fish?", "hi"):
        session.ask(question, print)
    reply = session.ask_again(1, "hi", print)
    assert reply.finish_reason == "stop"
    assert [exchange.user for exchange in session.exchanges] == ["hi", "hi"]


@pytest.mark.parametrize(("count", "question"), [(1, " "), (0, "x" * 500), (3, "hi"), (-1, "hi")])
def test_what_cant_be_asked_again_leaves_the_conversation(session, count, question):
    session.ask("hi", print)
    session.ask("fish?", print)
    session.pending = "open"
    before = list(session.exchanges)
    with pytest.raises(ConfigError):
        session.ask_again(count, question, print)
    assert (session.exchanges, session.pending) == (before, "open")
