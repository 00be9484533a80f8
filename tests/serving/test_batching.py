"""Answers that are generated together: each is what it would be alone, and who leaves makes room."""

import asyncio
import http.client
import json
import time

import openai
import pytest
from transformers import MambaConfig, MambaForCausalLM

from moe_hf.base.errors import ConfigError
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.serving.application import build_application
from moe_hf.serving.batching import Together
from moe_hf.serving.metrics import Meter
from moe_hf.text.tokenizers import byte_tokenizer
from tests.models.families import tiny_family
from tests.serving.conftest import served
from tests.serving.threads import running


@pytest.fixture(scope="module")
def writer() -> CausalTextModel:
    """A model of attention alone that writes bytes at random."""
    tokenizer = byte_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = tiny_family("llama", vocab_size=len(tokenizer), max_position_embeddings=5000, **ids)
    return CausalTextModel(model, tokenizer, "writer")


PROMPTS = [f"{number} and {'x' * (number % 9)}{number * 7}" for number in range(100)]


@pytest.fixture(scope="module")
def alone(writer) -> list[str]:
    """What `generate` makes of each prompt; before the model's attention is made for pages."""
    answers = []
    for prompt in PROMPTS:
        ids = writer.tokenizer(prompt, return_tensors="pt")
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": writer.tokenizer.eos_token_id}
        new = writer.model.generate(**ids, **options)[0, ids["input_ids"].shape[1] :]
        answers.append(writer.tokenizer.decode(new, skip_special_tokens=True))
    return answers


@pytest.fixture(scope="module")
def app(writer, alone):
    app = build_application([served(writer)], cache_tokens=6000)
    yield app
    app.close()


def ask(asgi, app, **fields):
    return asgi(app, "POST", "/v1/completions", {"prompt": "abc", "temperature": 0, **fields})


def test_a_hundred_at_once_are_answered_as_each_would_be_alone(app, alone) -> None:
    async def together(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:

            async def one(prompt: str) -> str:
                reply = await client.completions.create(model="writer", prompt=prompt, max_tokens=4, temperature=0)
                return str(reply.choices[0].text)

            return await asyncio.gather(*map(one, PROMPTS))

    with running(app) as url:
        answers = asyncio.run(together(url))
    # Half a character at the end of an answer is shown by one and not by the other.
    assert [answer.rstrip("\ufffd") for answer in answers] == [answer.rstrip("\ufffd") for answer in alone]
    assert len(set(answers)) > 50


def test_sampled_and_greedy_answers_and_stop_strings_go_together(app, asgi) -> None:
    greedy = ask(asgi, app, max_tokens=12).json["choices"][0]["text"]
    warm = {
        ask(asgi, app, max_tokens=12, temperature=3.0, top_p=0.95, top_k=40).json["choices"][0]["text"] for _ in "ab"
    }
    assert len({greedy, *warm}) == 3
    stop = greedy[3:5]
    reply = ask(asgi, app, max_tokens=12, stop=stop).json["choices"][0]
    assert (reply["text"], reply["finish_reason"]) == (greedy[: greedy.index(stop)], "stop")
    streamed = ask(asgi, app, max_tokens=12, stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == greedy


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_makes_room(app, asgi, stream) -> None:
    def metric(name: str) -> float:
        lines = asgi(app, "GET", "/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def wait_for(count: int) -> None:
        end = time.monotonic() + 20
        while metric("moe_hf_generating") != count or metric("moe_hf_requests_running") != count:
            assert time.monotonic() < end
            time.sleep(0.02)

    body = {"model": "writer", "prompt": "abc", "max_tokens": 4900, "temperature": 3.0, "stream": stream}
    with running(app) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=30)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        if stream:
            assert connection.getresponse().read(5) == b"data:"
        wait_for(1)
        connection.close()
        wait_for(0)
    before = metric("moe_hf_completion_tokens_total")
    assert ask(asgi, app, max_tokens=4).status == 200
    assert metric("moe_hf_completion_tokens_total") == before + 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repetition_penalty": 1.2}, "not served with --continuous_batching"),
        ({"prompt": "x" * 5000}, "the context of writer holds 5000"),
    ],
)
def test_what_can_not_be_had_together_is_refused(app, asgi, fields, message) -> None:
    reply = ask(asgi, app, **fields)
    assert (reply.status, message in reply.error) == (400, True)


def test_prompt_and_answer_may_take_all_pages_and_no_more(writer, asgi) -> None:
    app = build_application([served(writer)], cache_tokens=256)
    try:
        usage = ask(asgi, app, prompt="x" * 200, temperature=3.0).json["usage"]
        assert usage["total_tokens"] <= 256
        assert "--cache_tokens of the server holds 256 for prompt and answer" in ask(asgi, app, prompt="x" * 256).error
    finally:
        app.close()


def test_a_model_with_a_state_and_one_that_looks_back_are_refused(babbler, writer, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="layers that carry a state"):
        Together(served(babbler), 256, Meter())
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(babbler.tokenizer), hidden_size=8, num_hidden_layers=1, **ids))
    with pytest.raises(ConfigError, match=r"mamba can't be served with --continuous_batching: \w"):
        Together(served(CausalTextModel(mamba, babbler.tokenizer, "mamba")), 256, Meter())
    monkeypatch.setattr(writer.model.generation_config, "repetition_penalty", 1.3)
    with pytest.raises(ConfigError, match="writer has a repetition_penalty"):
        Together(served(writer), 256, Meter())


def test_a_thread_that_died_is_told_by_every_answer_and_by_health(writer, asgi, monkeypatch) -> None:
    app = build_application([served(writer)], cache_tokens=256)
    with monkeypatch.context() as patch:
        patch.setattr(writer.model, "forward", lambda *args, **kwargs: [][0])
        with pytest.raises(RuntimeError, match=r"list index out of range|the model has failed"):
            ask(asgi, app, max_tokens=3)
        end = time.monotonic() + 20
        while asgi(app, "GET", "/health").status != 503:
            assert time.monotonic() < end
            time.sleep(0.02)
    reply = ask(asgi, app)
    assert (reply.status, "the model has failed" in reply.error) == (503, True)
    app.close()


def test_what_comes_while_the_thread_dies_is_not_left_waiting(writer, asgi, monkeypatch) -> None:
    app = build_application([served(writer)], cache_tokens=256)
    # The thread is gone, and nobody has noticed yet.
    app.close()
    alive = iter([True])
    monkeypatch.setattr(Together, "is_alive", property(lambda self: next(alive, False)))
    with pytest.raises(RuntimeError, match="the model has failed"):
        ask(asgi, app, max_tokens=3)
