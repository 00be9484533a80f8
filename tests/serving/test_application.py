"""The whole application: in this process for what it refuses, and as a command that real clients talk to."""

import asyncio
import http.client
import json
import shutil
import signal
import subprocess
import time

import openai
import pytest

from moe_hf.serving.application import build_application

CHAT = "/v1/chat/completions"
BEARER = {"Authorization": "Bearer s3cret"}
HI = [{"role": "user", "content": "hi"}]


def client_of(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def connect(server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.url.removeprefix("http://").removesuffix("/v1"), timeout=60)


def send(connection: http.client.HTTPConnection, body: dict) -> None:
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (CHAT, {"model": "gpt-4", "messages": HI}, 404, "there is no model 'gpt-4' here; served are talker, babbler"),
        (CHAT, {"model": "talkr", "messages": HI}, 404, "did you mean 'talker'"),
        (CHAT, {"messages": HI}, 404, "no model is named"),
        (CHAT, {"model": "talker"}, 400, "messages is missing"),
        (
            CHAT,
            {"model": "talker", "messages": HI, "temperature": "hot"},
            400,
            "temperature must be 0 (greedy) or a number in",
        ),
        (CHAT, {"model": "talker", "messages": HI, "n": 2}, 400, "n=2 is not served here"),
        (CHAT, {"model": "talker", "messages": HI, "logit_bias": {"99999": 1}}, 400, "logit_bias names tokens"),
        (CHAT, {"model": "babbler", "messages": HI}, 400, "babbler has no chat template"),
        (CHAT, {"model": "talker", "messages": [{"role": "user", "content": "x" * 200}]}, 400, "context of talker"),
        (CHAT, b"{", 400, "no JSON object"),
        (CHAT, b"[]", 400, "no JSON object"),
        (CHAT, b"[" * 4000, 400, "error parsing the body"),
        (CHAT, b"\xff\xfe{}", 400, "no JSON object"),
        (CHAT, b"x" * 5001, 413, "larger than 5000 bytes"),
        ("/v1/completions", {"model": "talker", "prompt": ["a"]}, 400, "prompt must be a text"),
        ("/v1/completions", {"model": "babbler", "prompt": ""}, 400, "no tokens"),
        ("/load_model", {"model": "openai/gpt2"}, 404, "Not Found"),
        ("/reset", None, 404, "Not Found"),
        ("/v1/responses", {"model": "talker", "input": "hi"}, 404, "Not Found"),
        ("/metrics", None, 405, "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(application, asgi, path, body, status, message) -> None:
    reply = asgi(application, "POST", path, body)
    assert (reply.status, message in reply.error) == (status, True), reply


def test_only_who_bears_the_key_is_let_in(models, asgi) -> None:
    app = build_application(models[:1], api_key="s3cret")
    body = {"messages": HI, "temperature": 0}
    for key in (None, "", "s3cre", "s3cret2"):
        reply = asgi(app, "POST", CHAT, body, key=key)
        assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")
        assert "s3cret" not in reply.text
    assert asgi(app, "GET", "/metrics").status == 401
    assert asgi(app, "GET", "/health").json == {"status": "ok"}
    assert asgi(app, "POST", CHAT, body, key="s3cret").json["choices"][0]["message"]["content"] == "hello you"


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(application, asgi) -> None:
    body = {"model": "talker", "messages": HI, "temperature": 0, "stop": ["lo y", "zzz"]}
    reply = asgi(application, "POST", CHAT, body).json
    assert reply["choices"][0]["message"]["content"] == "hel"
    assert reply["choices"][0]["finish_reason"] == "stop"
    streamed = asgi(application, "POST", CHAT, {**body, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "hel"
    assert streamed.endswith("data: [DONE]\n\n")


def test_a_bias_decides_which_token_comes(application, asgi, talker) -> None:
    token = talker.tokenizer.convert_tokens_to_ids("q")
    body = {"model": "talker", "messages": HI, "temperature": 0, "max_tokens": 3, "logit_bias": {str(token): 100}}
    assert asgi(application, "POST", CHAT, body).json["choices"][0]["message"]["content"] == "qqq"


def test_a_seed_gives_the_same_answer_again(application, asgi) -> None:
    def answer(seed: int | None) -> str:
        body = {"model": "babbler", "prompt": "abc", "max_tokens": 12, "temperature": 3.0, "seed": seed}
        return str(asgi(application, "POST", "/v1/completions", body).json["choices"][0]["text"])

    assert answer(1) == answer(1) != answer(2)
    assert answer(None) != answer(None)


def test_what_a_user_writes_never_becomes_a_control_token(application, asgi, talker) -> None:
    marks = "".join(talker.tokenizer.all_special_tokens)
    messages = [{"role": "user", "content": marks}]
    body = {"model": "talker", "messages": messages, "max_tokens": 1}
    reply = asgi(application, "POST", CHAT, body).json
    assert reply["usage"]["prompt_tokens"] == len(talker.encode(messages)) > len(marks)


def test_the_answer_takes_what_the_context_leaves(application, asgi) -> None:
    body = {"model": "talker", "prompt": "x" * 90, "max_tokens": 50, "logit_bias": None}
    reply = asgi(application, "POST", "/v1/completions", body).json
    assert reply["usage"]["total_tokens"] <= 96


def test_the_openai_client_lists_chats_continues_and_streams(server) -> None:
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["talker", "babbler"]
    reply = client.chat.completions.create(model="talker", messages=HI, temperature=0)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("hello you", "stop")
    fish = [{"role": "user", "content": [{"type": "text", "text": "fish?"}]}]
    stream = client.chat.completions.create(
        model="talker", messages=fish, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a carp é"
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == 11
    whole = client.completions.create(model="babbler", prompt="abc", max_tokens=7, temperature=0)
    pieces = client.completions.create(model="babbler", prompt="abc", max_tokens=7, temperature=0, stream=True)
    assert (len(whole.choices[0].text), whole.choices[0].finish_reason) == (7, "length")
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=HI)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_a_whole_and_a_streamed_answer(server) -> None:
    body = {"model": "talker", "messages": HI, "temperature": 0}
    command = ["curl", "-sSN", "-m", "30", f"{server.url}/chat/completions", "-H", "Content-Type: application/json"]
    whole = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, check=True).stdout
    assert json.loads(whole)["choices"][0]["message"]["content"] == "hello you"
    lines = subprocess.run([*command, "-d", json.dumps({**body, "stream": True})], capture_output=True, check=True)
    events = [line for line in lines.stdout.decode().splitlines() if line]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


def test_a_hundred_requests_at_once_are_answered_as_each_would_be_alone(server, talker, babbler) -> None:
    prompts = [f"{number} and {number * 7}" for number in range(100)]

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        reply = await client.completions.create(
            model=("talker", "babbler")[number % 2], prompt=prompts[number], max_tokens=4, temperature=0
        )
        return str(reply.choices[0].text)

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(100)))

    def alone(number: int) -> str:
        owner = (talker, babbler)[number % 2]
        ids = owner.tokenizer(prompts[number], return_tensors="pt")
        new = owner.model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        return str(owner.tokenizer.decode(new, skip_special_tokens=True))

    answers = asyncio.run(together())
    assert answers == [alone(number) for number in range(100)]
    assert len(set(answers)) > 30


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_model_also_while_waiting_for_a_turn(server, stream) -> None:
    def begin(metrics: dict[str, float]) -> bool:
        return metrics["moe_hf_generating"] == 1

    endless = {"model": "babbler", "prompt": "abc", "max_tokens": 10**9, "stream": stream}
    first, second = connect(server), connect(server)
    send(first, endless)
    before = server.wait_until(begin)
    send(second, endless)
    server.wait_until(lambda metrics: metrics["moe_hf_requests_running"] == 2)
    second.close()
    server.wait_until(lambda metrics: metrics["moe_hf_requests_running"] == 1)
    assert server.metrics()["moe_hf_generating"] == 1
    if stream:
        assert first.getresponse().read(6) == b"data: "
    first.close()
    after = server.wait_until(lambda metrics: metrics["moe_hf_requests_running"] == metrics["moe_hf_generating"] == 0)
    abandoned = "moe_hf_requests_abandoned_total"
    assert after[abandoned] == before.get(abandoned, 0) + 2
    # And the next one has its turn.
    assert (
        client_of(server).completions.create(model="babbler", prompt="abc", max_tokens=3).usage.completion_tokens == 3
    )


def test_sigterm_finishes_the_answers_and_lets_nobody_in(start_server, folders) -> None:
    server = start_server(str(folders["babbler"]), MOE_HF_API_KEY="s3cret")
    client = openai.OpenAI(base_url=server.url, api_key="s3cret", max_retries=0, timeout=60)
    settings = {"model": "babbler", "prompt": "abc", "temperature": 0}
    stream = client.completions.create(max_tokens=200, stream=True, **settings)
    pieces = [next(stream)]
    waiting = http.client.HTTPConnection(server.url.removeprefix("http://").removesuffix("/v1"), timeout=60)
    body = json.dumps({"prompt": "abc", "temperature": 0, "max_tokens": 5})
    waiting.request("POST", "/v1/completions", body, {"Content-Type": "application/json", **BEARER})
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    with pytest.raises(ConnectionRefusedError):
        connect(server).connect()
    pieces += list(stream)
    assert sum(len(piece.choices[0].text) for piece in pieces) == 200
    assert pieces[-1].choices[0].finish_reason == "length"
    # Who waited for a turn then has it.
    assert json.loads(waiting.getresponse().read())["usage"]["completion_tokens"] == 5
    waiting.close()
    out, err = server.process.communicate(timeout=30)
    assert (server.process.returncode, out, err) == (0, "", "")
