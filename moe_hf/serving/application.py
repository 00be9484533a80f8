"""Puts the server together: transformers' application with this package's models, behind the gate."""

import inspect
from collections.abc import Sequence
from typing import Any

from transformers.cli.serving.server import build_server

from moe_hf.base.errors import first_line
from moe_hf.base.optional import require
from moe_hf.serving.batching import Together
from moe_hf.serving.expert_load import ExpertLoad
from moe_hf.serving.gate import Gate, error_object
from moe_hf.serving.generation import TakingTurns
from moe_hf.serving.handlers import ChatHandler, Managers, TextHandler
from moe_hf.serving.metrics import Meter
from moe_hf.serving.requests import RequestError
from moe_hf.serving.served import ServedModel, ServedModels

# Of the routes of transformers' application. The others load models by name, transcribe audio, or show pages that
# fetch scripts from elsewhere.
_KEPT = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")
METRICS_PATH = "/metrics"


def build_application(
    models: Sequence[ServedModel],
    api_key: str | None = None,
    max_body_bytes: int = 2**20,
    max_requests: int = 1024,
    cache_tokens: int = 0,
    loopback_only: bool = False,
) -> Gate:
    """An ASGI application that serves the models.

    Args:
        models: with different names.
        api_key: what requests must bear; None lets everyone in.
        max_body_bytes: most bytes of a request's body.
        max_requests: most requests at once, those that wait for their turn included.
        cache_tokens: generate the answers of a model together, with so many tokens kept at once for each model; 0 has
            them take turns.
        loopback_only: refuse requests that call the server by a name that is none of this machine.

    Raises:
        ConfigError: the models can't be served together.
        BackendUnavailableError: a package of the extra `serving` is absent.
    """
    for package in ("fastapi", "uvicorn", "openai"):
        require(package, "the server")
    meter = Meter()
    manager = ServedModels(models)
    for served in models:
        meter.collect_from(ExpertLoad(served.name, list(served.routers), served.experts_per_token).samples)
    together = {served.name: Together(served, cache_tokens, meter) for served in models if cache_tokens}
    state = Managers(TakingTurns(meter), together)
    # Handlers of audio and of other protocols have other names in other versions; their routes are not kept.
    given: dict[str, Any] = dict.fromkeys(inspect.signature(build_server).parameters)
    given.update(
        model_manager=manager,
        chat_handler=ChatHandler(manager, state),
        completion_handler=TextHandler(manager, state),
        generation_state=state,
        enable_cors=False,
    )
    app = build_server(**given)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in _KEPT]
    _add_metrics(app, meter)
    _add_error_handlers(app)
    paths = frozenset((*_KEPT, METRICS_PATH))
    return Gate(app, paths, meter, state.shutdown, api_key, max_body_bytes, max_requests, loopback_only)


def _add_metrics(app: Any, meter: Meter) -> None:
    responses = require("fastapi.responses", "the server")

    async def metrics() -> Any:
        return responses.PlainTextResponse(meter.text(), media_type="text/plain; version=0.0.4")

    app.add_api_route(METRICS_PATH, metrics, methods=["GET"])


def _add_error_handlers(app: Any) -> None:
    """Every error as the JSON that clients of the protocol expect."""
    exceptions = require("fastapi.exceptions", "the server")
    responses = require("fastapi.responses", "the server")

    def answer(error: RequestError) -> Any:
        return responses.JSONResponse(error_object(error), status_code=error.status)

    async def refused(request: Any, error: RequestError) -> Any:
        return answer(error)

    async def not_json(request: Any, error: Any) -> Any:
        return answer(RequestError(400, "the body is no JSON object with Content-Type: application/json"))

    async def http_error(request: Any, error: Any) -> Any:
        where = f"{request.method} {request.url.path[:100]}"
        code = "not_found" if error.status_code == 404 else "invalid_request"
        return answer(RequestError(error.status_code, f"{error.detail}: {where}", code))

    async def failed(request: Any, error: Exception) -> Any:
        return answer(RequestError(500, f"generation failed: {first_line(error)}", "server_error"))

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(exceptions.RequestValidationError, not_json)
    app.add_exception_handler(exceptions.StarletteHTTPException, http_error)
    app.add_exception_handler(404, http_error)
    app.add_exception_handler(Exception, failed)
