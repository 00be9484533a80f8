"""A model behind a server: ours for the whole of it, and a few lines each for what other servers do."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.inference.chat_session import ChatSession
from moe_hf.inference.chat_statistics import statistics_rows
from moe_hf.inference.remote_model import KEY_VARIABLE, RemoteTextModel
from moe_hf.inference.settings import GenerationSettings
from tests.serving.threads import running, served

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=24)


@pytest.fixture(scope="module")
def url(talker, babbler) -> Iterator[str]:
    with running(served(talker, babbler)) as url:
        yield url


def test_it_answers_word_for_word_as_the_model_does_here(url, talker) -> None:
    far, here = ChatSession(RemoteTextModel.connect(url, "talker"), GREEDY), ChatSession(talker, GREEDY)
    pieces: list[str] = []
    for question in ("hi", "fish?"):
        reply, expected = far.ask(question, pieces.append), here.ask(question, lambda text: None)
        assert (reply.text, reply.finish_reason) == (expected.text, expected.finish_reason)
        assert reply.num_prompt_tokens == expected.num_prompt_tokens
    assert len(pieces) > 5
    rows = dict(statistics_rows(far, [reply]))
    assert rows["model"] == f"talker on {url}"
    assert "parameters" not in rows


def test_sampled_answers_follow_the_seed_and_are_those_of_the_model_here(url, babbler) -> None:
    warm = GenerationSettings(temperature=1.5, top_k=7, top_p=0.9, repetition_penalty=1.2, max_new_tokens=9, seed=11)
    far = ChatSession(RemoteTextModel.connect(url, "babbler"), warm)
    assert far.ask("x", print).text == ChatSession(babbler, warm).ask("x", print).text


def test_plain_text_is_continued(url, talker) -> None:
    far = RemoteTextModel.connect(url, "talker", raw=True)
    assert far.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == ["ab"]
    reply = ChatSession(far, GREEDY).ask("hi", print)
    assert reply.num_prompt_tokens == 2


def test_a_stop_hangs_up_and_keeps_what_was_said(url) -> None:
    session = ChatSession(RemoteTextModel.connect(url, "babbler"), GREEDY._replace(max_new_tokens=90))
    reply = session.ask("x", lambda text: session.stop.set())
    assert reply.finish_reason == "interrupted"
    assert 0 < len(reply.text) < 60
    assert session.exchanges[-1].assistant == reply.text


def test_a_limit_that_only_the_server_knows_is_told_as_such(url) -> None:
    session = ChatSession(RemoteTextModel.connect(url, "babbler"), GREEDY._replace(max_new_tokens=500))
    assert session.ask("x", lambda text: None).finish_reason == "context"
    with pytest.raises(ConfigError, match="the context of babbler holds 96"):
        session.ask("x" * 200, print)
    assert session.pending == "x" * 200


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, r"has 2 models \(talker, babbler\); name one with --model"), ("talkr", "did you mean 'talker'")],
)
def test_a_model_must_be_one_of_the_servers(url, name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteTextModel.connect(url, name)


def test_the_key_comes_from_the_environment_and_is_never_shown(talker, monkeypatch) -> None:
    with running(served(talker, api_key="s3cret")) as url:
        monkeypatch.setenv(KEY_VARIABLE, "wr0ng")
        with pytest.raises(ConfigError, match="taken from OPENAI_API_KEY") as caught:
            RemoteTextModel.connect(url)
        assert "wr0ng" not in str(caught.value)
        monkeypatch.setenv(KEY_VARIABLE, "s3cret")
        assert ChatSession(RemoteTextModel.connect(url), GREEDY).ask("hi", print).text == "hello you"


@pytest.mark.parametrize("key", ["supersecret\r\n", "superse\rcret", "supersécret"])
def test_a_key_that_no_header_takes_is_not_shown(url, key, monkeypatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    if key.strip() == "supersecret":
        assert RemoteTextModel.connect(url, "talker").name == "talker"
        return
    with pytest.raises(ConfigError, match="OPENAI_API_KEY must be one word") as caught:
        RemoteTextModel.connect(url, "talker")
    assert "superse" not in str(caught.value)


def test_a_password_in_the_url_is_not_shown(url) -> None:
    secret = url.replace("//", "//user:s3cret@")
    model = RemoteTextModel.connect(secret, "talker")
    assert (model.place, "s3cret" in model.no_experts) == (url, False)
    with pytest.raises(ConfigError) as wrong:
        RemoteTextModel.connect(secret, "absent")
    with pytest.raises(ConnectionError) as nobody:
        RemoteTextModel.connect("http://user:s3cret@127.0.0.1:9/v1")
    assert "s3cret" not in f"{wrong.value} {nobody.value}"


def test_a_server_on_this_machine_is_asked_without_a_proxy(url, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert ChatSession(RemoteTextModel.connect(url, "talker"), GREEDY).ask("hi", print).text == "hello you"


def test_a_long_conversation_goes_on_without_its_oldest_turns(url, talker) -> None:
    far = ChatSession(RemoteTextModel.connect(url, "talker"), GREEDY._replace(max_new_tokens=4))
    unseen = [far.ask("hi" * 6, lambda text: None).num_unseen for _ in range(9)]
    assert unseen[0] == 0 < unseen[-1]
    assert len(far.exchanges) == 9
    # The rest of it is what fits.
    assert len(talker.encode(far.messages[unseen[-1] : -1])) < talker.context_limit


def test_where_nobody_answers_one_line_says_so() -> None:
    with pytest.raises(ConnectionError, match=r"no answer from http://127\.0\.0\.1:9/v1"):
        RemoteTextModel.connect("http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="must begin with http"):
        RemoteTextModel.connect("127.0.0.1:8000")


class OtherServer:
    """Lists no models, and answers with the events it is given; None breaks off."""

    def __init__(self, *events: Any) -> None:
        self.events = events
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/v1/chat/completions":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body"})
            return
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        self.asked.append(json.loads(body + message["body"]))
        headers = [(b"content-type", b"text/event-stream"), (b"content-length", b"100000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in self.events:
            data = event if isinstance(event, str) else json.dumps(event)
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
        # Less than was promised: the connection is cut.


def piece(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def test_a_server_that_lists_and_counts_nothing_can_be_talked_to() -> None:
    other = OtherServer(piece("a"), {"choices": []}, piece("b"), piece(None, "length"), "[DONE]")
    with running(other) as url:
        with pytest.raises(ConfigError, match="lists no models; name one"):
            RemoteTextModel.connect(url)
        model = RemoteTextModel.connect(url, "m")
        session = ChatSession(model, model.own_settings._replace(do_sample=False, max_new_tokens=24))
        reply = session.ask("hi", print)
        session.settings = GenerationSettings()
        session.ask("hi", print)
    assert (reply.text, reply.num_tokens, reply.finish_reason) == ("ab", 24, "max_new_tokens")
    sent = other.asked[0]
    assert (sent["temperature"], sent["max_tokens"], sent["stream"]) == (0, 24, True)
    assert not {"top_k", "top_p", "repetition_penalty"} & sent.keys()
    # What is set is sent, also where it is what a chat here begins with.
    assert (other.asked[1]["top_k"], other.asked[1]["repetition_penalty"]) == (50, 1.0)


def other_answers(content: bytes, kind: bytes = b"application/json") -> Any:
    """A server that answers this to everything, with 200."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"data": [{}]}', b'{"data": 3}', b"{", b"<html></html>"])
@pytest.mark.parametrize("kind", [b"text/html", b"application/json"])
def test_what_is_no_list_of_models_is_told_in_one_line(content, kind) -> None:
    with running(other_answers(content, kind)) as url, pytest.raises((ConfigError, ConnectionError)) as caught:
        RemoteTextModel.connect(url)
    assert url in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b'{"choices": [{"message": {"content": "hi"}}]}', b"<html></html>", b""])
def test_an_answer_without_events_is_no_empty_answer(content) -> None:
    with running(other_answers(content)) as url, pytest.raises(ConnectionError, match="sent no events"):
        ChatSession(RemoteTextModel(url, "m"), GREEDY).ask("hi", print)


def test_null_may_stand_anywhere_in_an_answer() -> None:
    contents = [None, {"content": None}, {"content": 3}, {"content": "a"}]
    events = [{"choices": None}, {"choices": 1}, {}, {"choices": [None]}]
    events += [{"choices": [{"delta": delta}]} for delta in contents]
    usage = {"prompt_tokens": None, "completion_tokens": None}
    with running(OtherServer(*events, {"choices": [], "usage": usage}, "[DONE]")) as url:
        reply = ChatSession(RemoteTextModel(url, "m"), GREEDY).ask("hi", print)
    assert (reply.text, reply.num_tokens, reply.num_prompt_tokens, reply.finish_reason) == ("a", 1, 0, "stop")


@pytest.mark.parametrize("events", [[piece("a")], [piece("a"), {"error": "it is out of memory"}]])
def test_a_server_that_breaks_off_is_told_from_an_answer(events) -> None:
    with running(OtherServer(*events)) as url:
        session = ChatSession(RemoteTextModel(url, "m"), GREEDY)
        with pytest.raises(ConnectionError, match=r"broke off: .*\w") as caught:
            session.ask("hi", lambda text: None)
    assert len(str(caught.value).splitlines()) == 1
    assert session.pending == "hi"


def test_what_is_done_with_the_text_may_fail_on_its_own(url) -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        RemoteTextModel(url, "babbler").complete([{"role": "user", "content": "x"}], GREEDY, 1, closed)


def test_a_stop_before_the_first_word_needs_no_answer() -> None:
    stop = threading.Event()
    stop.set()
    with running(OtherServer()) as url:
        done = RemoteTextModel(url, "m").complete([{"role": "user", "content": "x"}], GREEDY, 1, print, stop)
    assert (done.text, done.stopped) == ("", False)
