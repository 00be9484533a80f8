"""What a request may ask for: checks its fields and says in one line what is wrong with one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moe_hf.base.errors import did_you_mean

# Most strings that may end an answer, and their longest: each is looked for in every piece of text.
MOST_STOPS, LONGEST_STOP = 8, 1000


class RequestError(Exception):
    """A request can't be answered: the HTTP status, one line for the client, and a word for programs."""

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class _Field(NamedTuple):
    check: Callable[[Any], bool]
    allowed: str


def _is_number(value: Any) -> bool:
    # JSON as Python reads it also holds NaN and Infinity.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_text(value: Any) -> bool:
    # JSON can spell half a surrogate pair, which is no character and which no tokenizer takes.
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def _is_stop(value: Any) -> bool:
    stops = [value] if isinstance(value, str) else value
    return (
        isinstance(stops, list)
        and len(stops) <= MOST_STOPS
        and all(_is_text(stop) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    )


def _is_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(
        # Longer ones are no ids, and Python reads no number of thousands of digits.
        token.isascii() and token.isdigit() and len(token) <= 10 and _is_number(bias) and -100 <= bias <= 100
        for token, bias in value.items()
    )


_POSITIVE = _Field(lambda value: _is_int(value, 1, 10**9), "a whole number >= 1")

# What both kinds of requests may set, and what is allowed there.
_SHARED: dict[str, _Field] = {
    "model": _Field(_is_text, "the name of a model (GET /v1/models lists them)"),
    "stream": _Field(lambda value: isinstance(value, bool), "true or false"),
    "temperature": _Field(
        # Still smaller, and logits divided by it are no numbers any more.
        lambda value: _is_number(value) and (value == 0 or 0.01 <= value <= 10),
        "0 (greedy) or a number in [0.01, 10]",
    ),
    "top_p": _Field(lambda value: _is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "top_k": _Field(lambda value: _is_int(value, 0, 10**9), "a whole number >= 0 (0 = off)"),
    "repetition_penalty": _Field(lambda value: _is_number(value) and 0.1 <= value <= 10, "a number in [0.1, 10]"),
    "seed": _Field(lambda value: _is_int(value, 0, 2**63 - 1), "a whole number in [0, 2**63)"),
    "stop": _Field(_is_stop, f"a text, or a list of at most {MOST_STOPS}, none empty or over {LONGEST_STOP} long"),
    "max_tokens": _POSITIVE,
}
_CHAT: dict[str, _Field] = {
    **_SHARED,
    "messages": _Field(lambda value: isinstance(value, list) and bool(value), "a list of messages, not empty"),
    "max_completion_tokens": _POSITIVE,
    "logit_bias": _Field(_is_bias, "token ids with numbers in [-100, 100]"),
}
_COMPLETION: dict[str, _Field] = {**_SHARED, "prompt": _Field(_is_text, "a text of whole characters")}

# What the protocol has and this server has not: the values that ask for nothing.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "generation_config": (),
    "chat_template_kwargs": ({},),
}
# They change no answer.
_WITHOUT_EFFECT = {
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"),
    "stream_options",
}


def checked_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a chat request that have an effect, with plain text as the content of each message.

    Raises:
        RequestError: a field is missing, unknown, not served or out of its range.
    """
    fields = _checked(body, _CHAT, "messages")
    if "logit_bias" in fields:
        # transformers takes no whole numbers.
        fields["logit_bias"] = {token: float(bias) for token, bias in fields["logit_bias"].items()}
    fields["messages"] = [_message(index, message) for index, message in enumerate(fields["messages"])]
    return fields


def checked_completion(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a completion request that have an effect; raises as `checked_chat`."""
    return _checked(body, _COMPLETION, "prompt")


def _checked(body: Mapping[str, Any], known: Mapping[str, _Field], needed: str) -> dict[str, Any]:
    # None is how clients spell "not set".
    given = {name: value for name, value in body.items() if value is not None}
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in known:
            if not known[name].check(value):
                raise RequestError(400, f"{name} must be {known[name].allowed}, got {shown(value)}")
            fields[name] = value
        elif name in _ABSENT:
            # True and False count as 1 and 0 in Python, but not in JSON.
            neutrals = [neutral for neutral in _ABSENT[name] if isinstance(neutral, bool) == isinstance(value, bool)]
            if value not in neutrals:
                raise RequestError(400, f"{name}={shown(value)} is not served here; leave it out", "not_served")
        elif name not in _WITHOUT_EFFECT:
            hint = did_you_mean(name, list(known))
            raise RequestError(400, f"unknown field {name[:60]!r}{hint}; allowed are {', '.join(known)}")
    if needed not in fields:
        raise RequestError(400, f"{needed} is missing; it must be {known[needed].allowed}")
    return fields


def _message(index: int, message: Any) -> dict[str, str]:
    place = f"messages[{index}]"
    if not isinstance(message, dict) or not _is_text(message.get("role")):
        raise RequestError(400, f"{place} must be an object with role and content, got {shown(message)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise RequestError(400, f"{place} has tool calls, which are not served here", "not_served")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part.get("text") for part in parts]
        if len(parts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise RequestError(400, f"{place} has parts that are no text; only text is served here", "not_served")
        content = "".join(map(str, texts))
    if not _is_text(content):
        raise RequestError(400, f"the content of {place} must be a text of whole characters, got {shown(content)}")
    return {"role": message["role"], "content": content}


def shown(value: Any, width: int = 60) -> str:
    """A client's value on one line of an error, cut to `width` characters."""
    text = repr(value)
    return text if len(text) <= width else f"{text[:width]}..."
