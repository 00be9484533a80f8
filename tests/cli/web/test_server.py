"""The real page over HTTP, used as a program uses it."""

import socket
import time
import urllib.request

import pytest

from moe_hf.base.optional import is_available
from moe_hf.cli.chat import main
from moe_hf.inference.settings import GenerationSettings

needs_gradio = pytest.mark.skipif(not is_available("gradio"), reason="the web page needs the extra `web`")


def values(**changes):
    settings = GenerationSettings(max_new_tokens=12, seed=1)._replace(**changes)
    return [
        "random" if value is None else str(value) if key == "seed" else value
        for key, value in settings._asdict().items()
    ]


@pytest.fixture
def client(address):
    from gradio_client import Client

    client = Client(address, verbose=False, analytics_enabled=False)
    yield client
    client.close()


def texts(turns):
    return ["".join(part["text"] for part in turn["content"]) for turn in turns]


@needs_gradio
def test_a_conversation_over_http(client) -> None:
    _, turns, experts, said = client.predict("hi", 0, "", *values(), api_name="/say")
    assert texts(turns)[0] == "hi"
    assert len(texts(turns)[1]) == 12
    assert "routing-bar" in experts
    assert "[12 tokens" in said
    again = client.predict(0, "", *values(), api_name="/retry")[1]
    assert texts(again)[0] == "hi"
    assert client.predict(0, api_name="/undo")[1] == []


@needs_gradio
def test_the_answer_and_its_experts_come_piece_by_piece(client) -> None:
    job = client.submit("hi", 0, "", *values(max_new_tokens=400), api_name="/say")
    drawn = list(job)
    lengths = [len(texts(turns)[-1]) for _, turns, *_ in drawn]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3
    assert sum("routing-bar" in str(experts) for _, _, experts, _ in drawn[1:-1]) > 1


@needs_gradio
def test_stop_ends_an_answer_and_keeps_it(client) -> None:
    job = client.submit("hi", 0, "", *values(max_new_tokens=4000), api_name="/say")
    while not job.outputs():
        time.sleep(0.05)
    time.sleep(0.3)
    client.predict(api_name="/stop")
    _, turns, _, said = job.result(timeout=20)
    assert "interrupted" in said
    assert 0 < len(texts(turns)[1]) < 4000


@needs_gradio
def test_two_tabs_have_two_conversations(address, client) -> None:
    from gradio_client import Client

    other = Client(address, verbose=False, analytics_enabled=False)
    client.predict("one", 0, "", *values(), api_name="/say")
    turns = other.predict("two", 0, "", *values(), api_name="/say")[1]
    other.close()
    assert texts(turns)[0] == "two"
    assert len(turns) == 2


@needs_gradio
def test_a_tab_that_leaves_frees_the_model(address, client) -> None:
    from gradio_client import Client

    leaving = Client(address, verbose=False, analytics_enabled=False)
    job = leaving.submit("hi", 0, "", *values(max_new_tokens=4000), api_name="/say")
    while not job.outputs():
        time.sleep(0.05)
    leaving.close()
    job.cancel()
    started = time.monotonic()
    said = client.predict("hi", 0, "", *values(), api_name="/say")[3]
    assert "[12 tokens" in said
    assert time.monotonic() - started < 15


@needs_gradio
def test_the_page_needs_nothing_from_elsewhere(address) -> None:
    with urllib.request.urlopen(address, timeout=10) as answer:
        page, headers = answer.read().decode(), answer.headers
    assert "default-src 'self'" in headers["content-security-policy"]
    for word in ("googleapis", "gstatic", "cdnjs", "jsdelivr", "unpkg"):
        assert word not in page
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{address}gradio_api/file=/etc/passwd", timeout=10)


@needs_gradio
def test_a_name_that_somebody_has_lead_here_is_refused(address) -> None:
    request = urllib.request.Request(f"{address}config", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(request, timeout=10)


@needs_gradio
def test_it_listens_on_this_machine_alone(address) -> None:
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "{taken}"], "can't serve at 127.0.0.1, port {taken}"),
        (["--port", "70000"], "--port must be a whole number from 1 to 65535, got 70000"),
        (["--host", "::1"], "--host must be a name or an IPv4 address"),
        (["--host", "198.51.100.7", "--port", "{free}"], "can't serve at 198.51.100.7"),
    ],
)
def test_an_address_that_cant_be_served_is_said_before_the_model_is_read(words, message, capsys) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = {"taken": taken.getsockname()[1], "free": free.getsockname()[1]}
        assert main(["--web", "--model", "./nowhere", *[word.format(**ports) for word in words]]) == 2
    said = capsys.readouterr().err
    assert message.format(**ports) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["-p", "hi"],
        ["--json"],
        ["--per_line"],
        ["--plain"],
        ["--json_schema", "f"],
        ["--load", "f"],
        ["--transcript", "f"],
    ],
)
def test_flags_of_other_ways_to_talk_are_refused(flags, model_folder, capsys) -> None:
    assert main(["--web", "--model", str(model_folder), *flags]) == 2
    assert "is of no use with --web" in capsys.readouterr().err


def test_without_gradio_it_says_how_to_get_it(monkeypatch, model_folder, capsys) -> None:
    monkeypatch.setattr("moe_hf.base.optional.is_available", lambda name: False)
    assert main(["--web", "--model", str(model_folder)]) == 2
    assert "pip install 'moe_hf[web]'" in capsys.readouterr().err
