"""How a server is reached: its checked address, the key, and no secret of either in what is shown."""

import os
from typing import Any
from urllib.parse import urlsplit

from moe_hf.base.errors import ConfigError
from moe_hf.base.loopback import is_loopback
from moe_hf.base.optional import require

KEY_VARIABLE = "OPENAI_API_KEY"


def check_url(url: str) -> None:
    """Refuses what is no address of a server.

    Raises:
        ConfigError: says why, without the name and password that the URL may hold.
    """
    given = "one with a name or password" if "@" in url else repr(url)
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url must begin with http:// or https://, got {given}; see moe-hf serve")
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ConfigError(f"--url must be an address such as http://127.0.0.1:8000/v1, got {given}")


def shown_url(url: str) -> str:
    """The URL for people to read: without the name and password, and without what stands behind a question mark.

    >>> shown_url("http://me:s3cret@host:8000/v1?key=s3cret")
    'http://host:8000/v1'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def client_options(url: str, is_async: bool = False) -> dict[str, Any]:
    """What OpenAI's client is made with.

    A server on this machine is asked without a proxy.

    Args:
        url: passed `check_url`.
        is_async: for the client that awaits.

    Raises:
        ConfigError: the key can't be sent; it is not shown.
    """
    # The client wants a key even where the server wants none.
    options: dict[str, Any] = {"base_url": url, "api_key": _key() or "none", "max_retries": 1}
    if is_loopback(urlsplit(url).hostname or ""):
        openai = require("openai", "a model behind a URL")
        make = openai.DefaultAsyncHttpxClient if is_async else openai.DefaultHttpxClient
        options["http_client"] = make(trust_env=False)
    return options


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the key in {KEY_VARIABLE} must be one word of ASCII characters; set it anew")
    return key
