"""Keeps the page to this host.

By headers the browser itself does: an answer may name a picture anywhere. And a page that is served to this machine
alone answers nobody who asks for it by another name: a site may have its name lead here.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from moe_hf.base.loopback import is_loopback

# gradio's own scripts are written into the page and compile templates; from elsewhere nothing is loaded at all.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

_REFUSAL = b"this page is served to this machine alone: ask for it by 127.0.0.1 or localhost, or serve it with --host\n"

Message = MutableMapping[str, Any]


class PrivatePage:
    """An ASGI application around another: adds the headers to all that it sends.

    Args:
        app: the other.
        host: the address that is listened at; on one of loopback only its names are answered.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], host: str) -> None:
        self._app = app
        self._for_all = not is_loopback(host)

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """As ASGI asks for."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        if scope["type"] not in ("http", "websocket") or self._for_all or is_loopback(_asked_for(scope)):
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send_with_headers({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})


def _asked_for(scope: Message) -> str:
    """The host that a request names, without port and brackets; nothing if it names none, or several."""
    hosts = [value for name, value in scope.get("headers", ()) if name == b"host"]
    return re.sub(r":\d*$", "", hosts[0].decode("latin-1")).strip("[]") if len(hosts) == 1 else ""
