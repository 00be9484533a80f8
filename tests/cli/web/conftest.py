"""A page, served, with a model that babbles letters until it is stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from moe_hf.base.optional import is_available
from moe_hf.cli.web.tabs import Tabs
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel

SHORT = GenerationSettings(max_new_tokens=12, seed=1)


@pytest.fixture(scope="session")
def babbler(model_folder) -> CausalTextModel:
    return CausalTextModel.load(str(model_folder), device="cpu")


@pytest.fixture
def tabs(babbler) -> Tabs:
    return Tabs(babbler, SHORT)


@pytest.fixture(scope="session")
def address(model_folder):
    """Where `chat.py --web` serves the page, in a process of its own."""
    if not is_available("gradio"):
        pytest.skip("the web page needs the extra `web`")
    # One of its own for each process of tests: they may start at the same moment.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [sys.executable, "-m", "moe_hf", "chat", "--web", "--port", port, "--model", str(model_folder)]
    # Behind a proxy, as in many a company: what is on this machine must not be asked for there.
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    process = subprocess.Popen(
        [*words, "--device", "cpu", "--max_new_tokens", "12"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | proxies,
    )
    for line in process.stderr:
        if line.startswith("the chat is at "):
            break
    else:
        pytest.fail(f"chat --web ended with {process.wait()}")
    yield line.split()[4]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    # Until the end of it nothing else was said: no traceback, no warning.
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.fixture(scope="session")
def config(address):
    """What the page is made of, as gradio tells its own script."""
    with urllib.request.urlopen(f"{address}config", timeout=10) as answer:
        return json.load(answer)
