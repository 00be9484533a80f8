import asyncio

import pytest

from moe_hf.cli.web.private_page import PrivatePage


def test_every_answer_gets_the_headers_and_keeps_its_own() -> None:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"hi"})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(PrivatePage(app, "0.0.0.0")({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"x"] == b"y"
    policy = dict(part.strip().split(" ", 1) for part in headers[b"content-security-policy"].decode().split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    # Nothing from another host, whatever the kind.
    assert not any("http" in sources or "*" in sources for sources in policy.values())
    assert sent[1] == {"type": "http.response.body", "body": b"hi"}


def asked(listening: str, headers: list[tuple[bytes, bytes]], kind: str = "http") -> list[dict]:
    """What comes back from a page that listens there."""

    async def app(scope, receive, send):
        await send({"type": "answered"})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(PrivatePage(app, listening)({"type": kind, "headers": headers}, None, send))
    return sent


@pytest.mark.parametrize("name", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "127.0.0.2", "[::1]:7860"])
def test_a_page_of_this_machine_answers_by_its_names(name) -> None:
    assert asked("127.0.0.1", [(b"host", name.encode())]) == [{"type": "answered"}]


@pytest.mark.parametrize(
    "names",
    [["evil.example"], ["evil.example:7860"], ["127.0.0.1.evil.example"], [""], [], ["localhost", "evil.example"]],
)
@pytest.mark.parametrize("listening", ["127.0.0.1", "localhost"])
def test_a_page_of_this_machine_answers_by_no_other_name(listening, names) -> None:
    headers = [(b"host", name.encode()) for name in names]
    start, body = asked(listening, headers)
    assert start["status"] == 421
    assert b"127.0.0.1 or localhost" in body["body"]
    assert asked(listening, headers, "websocket") == [{"type": "websocket.close", "code": 1008}]


def test_a_page_for_others_answers_by_any_name() -> None:
    assert asked("0.0.0.0", [(b"host", b"chat.example")]) == [{"type": "answered"}]


def test_starting_and_ending_name_no_host() -> None:
    assert asked("127.0.0.1", [], "lifespan") == [{"type": "answered"}]
