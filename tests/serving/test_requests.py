"""What a request may hold, field by field."""

import pytest

from moe_hf.serving.requests import RequestError, checked_chat, checked_completion, shown

ASK = {"messages": [{"role": "user", "content": "hi"}]}


def test_what_has_no_effect_is_dropped_and_the_rest_kept() -> None:
    neutral = {"n": 1, "presence_penalty": 0.0, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
    ignored = {"user": "u", "stream_options": {"include_usage": True}, "model": None}
    kept = {**ASK, "temperature": 0, "top_k": 3, "seed": 2**63 - 1, "stop": ["a", "b"], "logit_bias": {"5": -1.5}}
    assert checked_chat({**kept, **neutral, **ignored}) == kept


def test_parts_of_a_message_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    message = {"role": "user", "content": parts, "name": "Ann"}
    assert checked_chat({"messages": [message]})["messages"] == [{"role": "user", "content": "a b"}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("temperature", 1e-300),
        ("repetition_penalty", 1e-300),
        ("stop", "a\ud800"),
        ("messages", [{"role": "user", "content": "half a \ud800 character"}]),
        ("messages", [{"role": "\udfff", "content": "hi"}]),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 1.5),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_completion_tokens", 10**10),
        ("seed", -1),
        ("stream", 1),
        ("stop", [""]),
        ("stop", ["a"] * 9),
        ("stop", "a" * 1001),
        ("stop", {}),
        ("model", ["talker"]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("messages", []),
        ("messages", "hi"),
        ("messages", ["hi"]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": 1, "content": "hi"}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("n", 2),
        ("logprobs", True),
        ("presence_penalty", 0.5),
        ("frequency_penalty", False),
        ("tools", [{"type": "function"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        ("messages", [{"role": "assistant", "content": "", "tool_calls": [{}]}]),
        ("generation_config", "{}"),
        ("logit_bias", {"1" * 5000: 1}),
        ("temprature", 1),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field, value) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        checked_chat({**ASK, field: value})
    assert caught.value.status == 400
    assert len(caught.value.message.splitlines()) == 1


def test_a_completion_needs_one_text() -> None:
    assert checked_completion({"prompt": "\U0001f600", "echo": False}) == {"prompt": "\U0001f600"}
    with pytest.raises(RequestError, match="prompt must be a text of whole characters"):
        checked_completion({"prompt": "\udc00"})
    with pytest.raises(RequestError, match="prompt is missing"):
        checked_completion({"model": "m"})
    with pytest.raises(RequestError, match="unknown field 'messages'"):
        checked_completion({"prompt": "a", **ASK})


def test_a_long_value_is_cut_in_the_error() -> None:
    assert shown("x" * 100, width=5) == "'xxxx..."
