"""Serves the page of a chat on this machine, until Ctrl-C."""

import os
import socket
from pathlib import Path
from typing import Any

from moe_hf.base.errors import ConfigError
from moe_hf.base.optional import require
from moe_hf.cli.web.layout import Layout
from moe_hf.cli.web.private_page import PrivatePage
from moe_hf.cli.web.tabs import Tabs
from moe_hf.inference.chat_session import ChatSession

LOOPBACK = "127.0.0.1"
# Messages that may wait while another tab is answered.
MOST_WAITING = 64


def require_gradio() -> Any:
    """The package gradio, told to keep to itself.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    # Read when it is imported. Nothing leaves this machine: no statistics, no question for newer versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return require("gradio", "the web page (--web)")


def check_address(host: str, port: int | None) -> None:
    """Finds out whether the page can be served there, before a model is read.

    Raises:
        ConfigError: the port is taken or no port, or the address is none of this machine, or is of IPv6.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"--port must be a whole number from 1 to 65535, got {port}")
    if ":" in host:
        raise ConfigError(f"--host must be a name or an IPv4 address such as {LOOPBACK} or 0.0.0.0, got {host!r}")
    try:
        with socket.create_server((host, port or 0)):
            pass
    except OSError as error:
        raise _refused(host, port, error) from error


def _ask_directly(host: str) -> None:
    """Keeps a proxy out of the way between this process and the page, which gradio asks for once it is served."""
    for name in ("no_proxy", "NO_PROXY"):
        given = [word for word in os.environ.get(name, "").split(",") if word]
        os.environ[name] = ",".join(dict.fromkeys([*given, "localhost", LOOPBACK, host]))


def _refused(host: str, port: int | None, error: OSError) -> ConfigError:
    where = host if port is None else f"{host}, port {port}"
    return ConfigError(f"can't serve at {where}: {error.strerror or error}; choose with --port and --host")


def open_page(session: ChatSession, host: str = LOOPBACK, port: int | None = None) -> tuple[Any, str]:
    """Starts to serve the page; returns gradio's Blocks, whose `close()` ends it, and the address.

    Args:
        session: gives the model, the settings and the system message of each new tab.
        host: the address to listen at.
        port: None takes the first free one from 7860 on.

    Raises:
        BackendUnavailableError: gradio is not installed.
        ConfigError: the port is taken, or the address is none of this machine.
    """
    gradio = require_gradio()
    here = Path(__file__).parent
    layout = Layout(gradio, Tabs(session.model, session.settings), session.system or "")
    layout.blocks.queue(max_size=MOST_WAITING)
    _ask_directly(host)
    try:
        _, address, _ = layout.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            # Nothing is uploaded here.
            max_file_size=1,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=[here / "page.css"],
            head=f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={"middleware": [(PrivatePage, (host,), {})]},
        )
    except OSError as error:
        raise _refused(host, port, error) from error
    return layout.blocks, address
