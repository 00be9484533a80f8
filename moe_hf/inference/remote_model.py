"""A model behind an OpenAI-compatible server, as a chat asks it."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from moe_hf.base.errors import ConfigError, did_you_mean, first_line
from moe_hf.base.optional import require
from moe_hf.inference.answering import Completion, ContextFullError, continued_text
from moe_hf.inference.remote_access import KEY_VARIABLE, check_url, client_options, shown_url
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.settings import GenerationSettings
from moe_hf.text.chat_template import Message

# How often a stop is looked for while nothing comes.
_POLL_SECONDS = 0.05


class RemoteTextModel:
    """Answers by asking a server; the tokenizer and the limit of the context are the server's.

    The key of the server stands in the environment variable OPENAI_API_KEY, if it wants one.

    Args:
        url: where its paths begin, such as `http://127.0.0.1:8000/v1`.
        name: what the server calls the model.
        raw: continue plain text instead of taking turns.
    """

    context_limit = None
    sparse_layers: tuple[int, ...] = ()

    def __init__(self, url: str, name: str, raw: bool = False) -> None:
        self.url, self.name = url, name
        self.is_chat = not raw

    @classmethod
    def connect(cls, url: str, name: str | None = None, raw: bool = False) -> "RemoteTextModel":
        """The model of that name, or the server's only one.

        Raises:
            ConfigError: the URL is none, the server refuses the key, or has no such model or several.
            ConnectionError: nothing answers there.
            BackendUnavailableError: the package openai is absent.
        """
        check_url(url)
        openai = _openai()
        shown = shown_url(url)
        with openai.OpenAI(**client_options(url)) as client:
            try:
                names = _listed(client)
            except openai.NotFoundError:
                names = None
            except openai.OpenAIError as error:
                raise _told(error, shown) from error
            # What the client makes of a page of HTML, or of JSON of another form.
            except (AttributeError, TypeError, ValueError) as error:
                raise ConfigError(f"{shown}/models is no list of models; check the path (most end in /v1)") from error
        return cls(url, _chosen(names, name, shown), raw)

    @property
    def place(self) -> str:
        """The URL, without the name and password that it may hold."""
        return shown_url(self.url)

    @property
    def own_settings(self) -> GenerationSettings:
        """The defaults of a chat; the server decides on what the protocol itself does not have."""
        return GenerationSettings(top_k=None, repetition_penalty=None)

    @property
    def no_experts(self) -> str:
        """Why it shows no experts."""
        return (
            f"the model runs at {self.place}, and answers come without their experts; moe-hf serve counts at /metrics"
        )

    def encode(self, messages: Sequence[Message]) -> Sequence[Any]:
        """The messages themselves; as one text where there are no turns."""
        return list(messages) if self.is_chat else [continued_text(messages)]

    def complete(
        self,
        prompt_ids: Sequence[Any],
        settings: GenerationSettings,
        seed: int,
        on_text: Callable[[str], None],
        stop: threading.Event | None = None,
        record_routing: bool = False,
        on_routing: Callable[[RoutingTrace], None] | None = None,
    ) -> Completion:
        """Asks for an answer and hands over its text while it comes; hangs up once `stop` is set.

        Args:
            prompt_ids: what `encode` returned.
            settings: `top_k` and `repetition_penalty` are sent unless they are None, since the protocol itself has
                neither.
            seed: start of the server's random numbers.
            on_text: called with each piece of text.
            stop: ends the answer.
            record_routing: without effect.
            on_routing: never called.

        Raises:
            ContextFullError: the server says that the conversation is too long.
            ConfigError: the server refuses the request.
            ConnectionError: it can't be reached, or fails.
        """
        stream = _Stream(self.url, self._request(prompt_ids, settings, seed), self.is_chat, on_text)
        started = time.perf_counter()
        asyncio.run(stream.read(stop or threading.Event()))
        text = "".join(stream.texts)
        # Where the server does not count: a piece is a token, and an answer that was cut had all it may have.
        counted = settings.max_new_tokens if stream.finish_reason == "length" else len(stream.texts)
        return Completion(
            text=text,
            num_tokens=stream.count("completion_tokens", counted),
            seconds=time.perf_counter() - started,
            stopped=stream.finish_reason not in (None, "length"),
            routing=None,
            num_prompt_tokens=stream.count("prompt_tokens", 0),
        )

    def num_parameters(self) -> int | None:
        """Not known."""
        return None

    def num_active_parameters(self) -> int | None:
        """Not known."""
        return None

    def peak_memory(self) -> int | None:
        """Not known."""
        return None

    def _request(self, prompt: Sequence[Any], settings: GenerationSettings, seed: int) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.name,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature if settings.do_sample else 0,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        beyond = {name: getattr(settings, name) for name in ("top_k", "repetition_penalty")}
        extra = {name: value for name, value in beyond.items() if value is not None}
        if settings.do_sample:
            request["top_p"] = settings.top_p
        else:
            extra.pop("top_k", None)
        if extra:
            request["extra_body"] = extra
        return request | ({"messages": list(prompt)} if self.is_chat else {"prompt": prompt[0]})


class _Stream:
    """One answer that is read from a server."""

    def __init__(self, url: str, request: dict[str, Any], is_chat: bool, on_text: Callable[[str], None]) -> None:
        self._url, self._request, self._is_chat, self._on_text = url, request, is_chat, on_text
        self._shown = shown_url(url)
        self._begun = False
        self.texts: list[str] = []
        self.finish_reason: str | None = None
        self.usage: Any = None

    def count(self, name: str, otherwise: int) -> int:
        """A number of tokens as the server counts them, if it does."""
        value = getattr(self.usage, name, None)
        return value if isinstance(value, int) else otherwise

    async def read(self, stop: threading.Event) -> None:
        """Reads to the end, or hangs up once `stop` is set."""
        reading = asyncio.ensure_future(self._read())
        while not reading.done():
            if stop.is_set():
                reading.cancel()
            await asyncio.wait({reading}, timeout=_POLL_SECONDS)
        if not reading.cancelled():
            # Raises what went wrong.
            reading.result()

    async def _read(self) -> None:
        openai = _openai()
        async with openai.AsyncOpenAI(**client_options(self._url, is_async=True)) as client:
            ask = client.chat.completions.create if self._is_chat else client.completions.create
            try:
                stream = await ask(**self._request)
            except openai.OpenAIError as error:
                raise _told(error, self._shown) from error
            async with stream:
                chunks = aiter(stream)
                while (chunk := await self._next(chunks)) is not None:
                    self._take(chunk)
        if not self._begun:
            raise ConnectionError(f"{self._shown} sent no events of an answer; it must stream (check the path)")
        # Who ends without a reason was not cut short.
        self.finish_reason = self.finish_reason or "stop"

    async def _next(self, chunks: Any) -> Any:
        """The next chunk, None at the end. Apart from what is done with it: a closed pipe is no fault of the server."""
        try:
            return await anext(chunks, None)
        # Of the client itself, or of the HTTP library below it.
        except Exception as error:
            raise _told(error, self._shown, begun=True) from error

    def _take(self, chunk: Any) -> None:
        """Takes what there is: servers send null, or nothing, in any place."""
        self.usage = getattr(chunk, "usage", None) or self.usage
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list):
            return
        self._begun = True
        for choice in choices[:1]:
            piece = getattr(choice, "delta", None) if self._is_chat else choice
            text = getattr(piece, "content" if self._is_chat else "text", None)
            if text and isinstance(text, str):
                self.texts.append(text)
                self._on_text(text)
            self.finish_reason = getattr(choice, "finish_reason", None) or self.finish_reason


def _openai() -> Any:
    return require("openai", "a model behind a URL")


def _listed(client: Any) -> list[str]:
    names = [model.id for model in client.models.list()]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"names of models must be texts, got {names}")
    return names


def _chosen(names: list[str] | None, name: str | None, shown: str) -> str:
    if names is None:
        if name is None:
            raise ConfigError(f"{shown} lists no models; name one with --model, or check the path (most end in /v1)")
        return name
    if name is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if name is None:
        raise ConfigError(f"{shown} has {len(names)} models ({listed}); name one with --model")
    if name not in names:
        raise ConfigError(f"{shown} has no model {name!r}{did_you_mean(name, names)}; it has {listed}")
    return name


def _told(error: Exception, shown: str, begun: bool = False) -> Exception:
    """The error in one line: whose fault it is decides its class."""
    openai = _openai()
    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        reason = body.get("message") or first_line(error)
        text = f"{shown} refuses: {reason}"
        if error.status_code in (401, 403):
            text += f" (the key is taken from {KEY_VARIABLE})"
        if error.code == "context_length_exceeded":
            return ContextFullError(text)
        return ConfigError(text) if error.status_code < 500 else ConnectionError(text)
    told: Any = getattr(error, "body", None)
    reason = told if isinstance(told, str) else first_line(error.__cause__ or error)
    return ConnectionError(f"{shown} broke off: {reason}" if begun else f"no answer from {shown}: {reason}")
