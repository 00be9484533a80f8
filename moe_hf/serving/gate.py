"""What every request passes before and after transformers' application: token, size, hang-ups, counting."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from moe_hf.base.loopback import is_loopback
from moe_hf.serving.calls import Call, begin_call
from moe_hf.serving.metrics import Meter
from moe_hf.serving.requests import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Seconds in which the whole body of a request has to come.
SLOWEST_BODY = 60.0
# Whether the server is alive may be asked by anyone, and asking is no work.
OPEN_PATHS = ("/health",)
UNCOUNTED_PATHS = ("/health", "/metrics")


class Gate:
    """An ASGI application around another.

    Args:
        app: answers what is let through.
        paths: those that `app` has; the others are counted under one name.
        meter: counts requests.
        close: ends the threads behind `app`; call it when nothing is served any more.
        api_key: what requests must bear; None lets everyone in.
        max_body_bytes: most bytes of a request's body.
        max_requests: most requests at once; what comes then is told to come back.
        loopback_only: answer only who calls this server by a name of this machine. A page of another site, whose name
            was made to lead here, sends that name.
    """

    def __init__(
        self,
        app: App,
        paths: frozenset[str],
        meter: Meter,
        close: Callable[[], None] = lambda: None,
        api_key: str | None = None,
        max_body_bytes: int = 2**20,
        max_requests: int = 1024,
        loopback_only: bool = False,
    ) -> None:
        self._app, self._paths, self._meter = app, paths, meter
        self.close = close
        self._key = None if api_key is None else api_key.encode()
        self._max_body_bytes, self._max_requests = max_body_bytes, max_requests
        self._loopback_only = loopback_only
        self._running = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one connection's request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Sending(send)
        counted = scope["path"] not in UNCOUNTED_PATHS
        if counted:
            self._running += 1
            self._meter.add("moe_hf_requests_running")
        try:
            await self._let_in(scope, receive, answer)
        except RequestError as error:
            await answer.refuse(error)
        finally:
            if counted:
                self._running -= 1
                self._meter.add("moe_hf_requests_running", -1)
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._meter.add("moe_hf_requests_total", path=path, status=str(answer.status or "none"))

    async def _let_in(self, scope: Message, receive: Receive, answer: "_Sending") -> None:
        self._check_host(scope)
        self._check_key(scope)
        if self._running > self._max_requests:
            raise RequestError(503, f"{self._max_requests} requests are running; try again later", "overloaded")
        _check_kind(scope)
        body = b"" if scope["path"] in OPEN_PATHS else await self._body(scope, receive)
        if body is None:
            return
        call = begin_call()
        connection = _Connection(body, receive)
        answering = asyncio.ensure_future(self._app(scope, connection.receive, answer))
        hanging_up = asyncio.ensure_future(connection.wait_for_end())
        try:
            await asyncio.wait({answering, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not answer.is_complete:
                self._abandon(call, answering)
            with contextlib.suppress(asyncio.CancelledError):
                await answering
        finally:
            call.stop.set()
            answering.cancel()
            hanging_up.cancel()

    def _abandon(self, call: Call, answering: "asyncio.Future[None]") -> None:
        self._meter.add("moe_hf_requests_abandoned_total")
        # First, so that the thread sees it whatever the task does with being cancelled.
        call.stop.set()
        answering.cancel()

    def _check_host(self, scope: Message) -> None:
        # Browsers always send it.
        given = dict(scope["headers"]).get(b"host")
        if self._loopback_only and given is not None and not is_loopback(_name_of(given.decode("latin-1"))):
            raise RequestError(
                421, "without an API key only localhost and 127.0.0.1 are served; set a key", "wrong_host"
            )

    def _check_key(self, scope: Message) -> None:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # In a time that does not tell how much of it was right.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise RequestError(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", "invalid_api_key"
            )

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None if the client left before its end."""
        too_large = RequestError(
            413, f"the body is larger than {self._max_body_bytes} bytes; shorten the conversation", "body_too_large"
        )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(SLOWEST_BODY):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            raise RequestError(408, f"the body did not come within {SLOWEST_BODY:.0f} s", "timeout") from error


def _name_of(host: str) -> str:
    """The host of `host:port`, without the brackets of `[::1]:port`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _check_kind(scope: Message) -> None:
    """Refuses what any site's page could have a visitor's browser send without asking first (CORS)."""
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
    if scope["method"] == "POST" and kind != b"application/json":
        raise RequestError(415, "the body must be declared; send Content-Type: application/json", "not_json")


class _Connection:
    """The client's side of a request whose body was read: first the body again, then only that it left."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._ended = asyncio.Event()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._ended.wait()
        return {"type": "http.disconnect"}

    async def wait_for_end(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._ended.set()


class _Sending:
    """The server's side: keeps the status, and ends a stream of events with the mark that clients wait for."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.is_complete = False
        self._is_stream = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.is_complete = True
            if self._is_stream:
                message = {**message, "body": message.get("body", b"") + b"data: [DONE]\n\n"}
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answers with the error, unless something was sent already."""
        if self.status is not None:
            return
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.status == 503:
            headers.append((b"retry-after", b"1"))
        body = json.dumps(error_object(error)).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        await self({"type": "http.response.start", "status": error.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def error_object(error: RequestError) -> dict[str, Any]:
    """The JSON that clients of the protocol expect."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}
