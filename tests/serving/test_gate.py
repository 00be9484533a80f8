"""What every request passes, with small applications behind the gate."""

import asyncio
from typing import Any

import pytest

from moe_hf.serving.calls import current_call
from moe_hf.serving.gate import Gate
from moe_hf.serving.metrics import Meter

PATHS = frozenset({"/v1/models"})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body[::-1]})


async def events(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def test_a_body_reaches_the_application_and_its_answer_the_client(asgi) -> None:
    assert asgi(Gate(echo, PATHS, Meter()), "POST", "/v1/models", b"abc").text == "cba"


def test_a_stream_of_events_ends_with_the_mark_that_clients_wait_for(asgi) -> None:
    assert asgi(Gate(events, PATHS, Meter()), "GET", "/v1/models").text == "data: 1\n\ndata: [DONE]\n\n"


def test_requests_are_counted_by_known_path_and_status(asgi) -> None:
    meter = Meter()
    gate = Gate(echo, PATHS, meter, max_body_bytes=2)
    for path, body in (("/v1/models", b"ab"), ("/v1/models", b"abc"), ("/a" * 50, b""), ("/metrics", b"")):
        asgi(gate, "POST", path, body)
    assert meter.value("moe_hf_requests_total", path="/v1/models", status="200") == 1
    assert meter.value("moe_hf_requests_total", path="/v1/models", status="413") == 1
    assert meter.value("moe_hf_requests_total", path="other", status="200") == 1
    assert meter.value("moe_hf_requests_running") == 0
    assert "/metrics" not in meter.text()


def test_a_body_that_grows_too_large_is_refused_before_its_end() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    asyncio.run(Gate(echo, PATHS, Meter(), max_body_bytes=1000)(scope, receive, send))
    assert sent[0]["status"] == 413


def test_a_slow_body_is_given_up(asgi, monkeypatch) -> None:
    monkeypatch.setattr("moe_hf.serving.gate.SLOWEST_BODY", 0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(
        Gate(echo, PATHS, Meter())({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)
    )
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("after_body", [False, True])
def test_who_leaves_stops_the_call(after_body) -> None:
    meter = Meter()
    calls: list[Any] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        calls.append(current_call())
        await asyncio.Event().wait()

    messages = [{"type": "http.request", "body": b"", "more_body": False}] if after_body else []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    gate = Gate(endless, PATHS, meter)
    asyncio.run(gate({"type": "http", "method": "GET", "path": "/v1/models", "headers": []}, receive, send))
    assert [call.stop.is_set() for call in calls] == [True] * after_body
    assert meter.value("moe_hf_requests_abandoned_total") == after_body
    assert meter.value("moe_hf_requests_running") == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [(b"evil.example:8123", 421), (b"127.0.0.1.evil.example", 421), (b"[::2]:1", 421), (b"\xff", 421), (b"", 421)],
)
def test_without_a_key_only_names_of_this_machine_are_served(host, status) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host)]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
    asyncio.run(Gate(echo, PATHS, Meter(), loopback_only=True)(scope, receive, send))
    assert sent[0]["status"] == status
    assert b"set a key" in sent[1]["body"]


@pytest.mark.parametrize("host", [b"localhost:8123", b"127.0.0.1:8123", b"[::1]:8123", b"localhost"])
def test_names_of_this_machine_are_served(host) -> None:
    sent: list[Any] = []
    bodies = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if bodies:
            return bodies.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", host)]}
    asyncio.run(Gate(echo, PATHS, Meter(), loopback_only=True)(scope, receive, send))
    assert sent[0]["status"] == 200


def test_a_body_is_not_waited_for_where_anyone_may_ask() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"content-length", b"9")]}
    asyncio.run(asyncio.wait_for(Gate(echo, PATHS, Meter(), api_key="k")(scope, receive, send), 10))
    assert sent[0]["status"] == 200


def test_more_requests_than_allowed_are_told_to_come_back(asgi) -> None:
    statuses: list[int] = []

    async def crowd() -> None:
        release = asyncio.Event()

        async def waiting(scope: Any, receive: Any, send: Any) -> None:
            await release.wait()
            await echo(scope, receive, send)

        gate = Gate(waiting, PATHS, Meter(), max_requests=2)

        async def one() -> None:
            bodies = [{"type": "http.request", "body": b"", "more_body": False}]

            async def receive() -> Any:
                if bodies:
                    return bodies.pop()
                await asyncio.Event().wait()

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await gate({"type": "http", "method": "GET", "path": "/v1/models", "headers": []}, receive, send)

        tasks = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(0.05)
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(crowd())
    assert sorted(statuses) == [200, 200, 503]


@pytest.mark.parametrize("kind", [None, b"text/plain", b"application/x-www-form-urlencoded", b"application/jsonx"])
def test_what_a_page_of_another_site_could_send_is_refused(kind) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is not even read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if kind is None else [(b"content-type", kind)]
    scope = {"type": "http", "method": "POST", "path": "/v1/models", "headers": headers}
    asyncio.run(Gate(echo, PATHS, Meter())(scope, receive, send))
    assert sent[0]["status"] == 415
