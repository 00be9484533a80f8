"""Listens on an address and serves an application there until a signal asks it to finish."""

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from moe_hf.base.errors import ConfigError
from moe_hf.base.optional import require

# Connections that wait to be accepted; a burst of clients must not be refused.
_BACKLOG = 2048


def take_address(host: str, port: int) -> socket.socket:
    """A socket that holds the address, so that a mistake shows before models are read.

    It listens: bound alone, a second server could take the same address. Who connects early waits.

    Args:
        host: a name or an address of this machine.
        port: 0 takes any free one.

    Raises:
        ConfigError: the address is taken, or is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host} is no address: {error.strerror}; give 127.0.0.1 or 0.0.0.0") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(_BACKLOG)
    except OSError as error:
        taken.close()
        raise ConfigError(f"can't listen on {host} port {port}: {error.strerror}; give another --port") from error
    return taken


def url_of(taken: socket.socket) -> str:
    """The address as clients write it, with the path that they ask for."""
    host, port = taken.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def serve(app: Any, taken: socket.socket, log_level: str, on_ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or Ctrl-C, finishes the answers that were asked for by then, and returns.

    From the signal on nobody can connect. A Ctrl-C after it returns at once.

    Args:
        app: an ASGI application.
        taken: from `take_address`; closed at the end.
        log_level: of the server's log; `info` has a line per request.
        on_ready: called when clients are answered.

    Raises:
        KeyboardInterrupt: the signal was Ctrl-C.
    """
    uvicorn = require("uvicorn", "the server")
    config = uvicorn.Config(app, log_level=log_level, access_log=log_level in ("info", "debug"), lifespan="on")
    server = uvicorn.Server(config)
    on_ready()
    in_main_thread = threading.current_thread() is threading.main_thread()
    # uvicorn raises the signal again when it is done; by then it has had its effect.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None) if in_main_thread else None
    try:
        server.run(sockets=[taken])
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
