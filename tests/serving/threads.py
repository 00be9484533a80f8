"""A server in a thread of the test's own process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from moe_hf.inference.text_model import CausalTextModel
from moe_hf.serving.application import build_application
from moe_hf.serving.listening import take_address, url_of
from moe_hf.serving.served import ServedModel


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of an ASGI application, while it runs."""
    taken = take_address("127.0.0.1", 0)
    url = url_of(taken)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([taken],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()


def served(*models: CausalTextModel, **options: Any) -> Any:
    """The application that serves these models."""
    return build_application(
        [
            ServedModel(model.name, model.model, model.tokenizer, model.stop_ids, model.context_limit)
            for model in models
        ],
        **options,
    )
