"""A model that knows two answers by heart, one that never stops, and ways to ask a server of both."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from moe_hf import GPT2WithMoE, RetNetWithMoE, RetNetWithMoEConfig, create_moe_config
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.serving.application import build_application
from moe_hf.serving.gate import Gate
from moe_hf.serving.served import ServedModel
from moe_hf.text.tokenizers import byte_tokenizer

KNOWN = {"hi": "hello you", "fish?": "a carp é"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> str:
        return str(self.json["error"]["message"])


def ids_of(tokenizer) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


@pytest.fixture(scope="session")
def talker() -> CausalTextModel:
    """Answers what is in `KNOWN`, has experts in two layers and a context of 96 tokens."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    experts = {"moe_intermediate_size": 64, "num_experts": 5, "mlp_layer_types": ["sparse", "dense", "sparse"]}
    place = {"position_embedding_type": "learned", "max_position_embeddings": 96}
    config = create_moe_config("tiny", vocab_size=len(tokenizer), **shape, **experts, **place, **ids_of(tokenizer))
    model = GPT2WithMoE(config).train()
    rows = []
    for question, answer in KNOWN.items():
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"])
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.max_new_tokens = 24
    return CausalTextModel(model.eval(), tokenizer, "talker")


@pytest.fixture(scope="session")
def babbler() -> CausalTextModel:
    """A recurrent model without limits or chat template that never ends an answer by itself."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = RetNetWithMoE(
        RetNetWithMoEConfig(
            vocab_size=len(tokenizer), num_experts=4, initializer_range=0.2, **shape, **ids_of(tokenizer)
        )
    )
    # Only letters: every token shows, and none ends the answer.
    letters = {tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnopqrstuvwxyz"}
    model.generation_config.suppress_tokens = sorted(set(range(len(tokenizer))) - letters)
    return CausalTextModel(model.eval(), tokenizer, "babbler")


def served(talker: CausalTextModel) -> ServedModel:
    routers = tuple(zip(talker.sparse_layers, talker.routers.values(), strict=True))
    return ServedModel(talker.name, talker.model, talker.tokenizer, talker.stop_ids, talker.context_limit, routers, 2)


@pytest.fixture(scope="session")
def models(talker, babbler) -> list[ServedModel]:
    return [served(talker), served(babbler)]


@pytest.fixture(scope="session")
def application(models) -> Gate:
    """Both models, without a key, with bodies of at most 5,000 bytes."""
    return build_application(models, max_body_bytes=5000)


@pytest.fixture(scope="session")
def asgi() -> Callable[..., Reply]:
    """Sends one request to an application in this process."""

    def ask(app: Any, method: str, path: str, body: Any = None, key: str | None = None) -> Reply:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        if key is not None:
            headers.append((b"authorization", f"Bearer {key}".encode()))
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}}
        sent: list[Any] = []

        async def exchange() -> None:
            messages = [{"type": "http.request", "body": raw, "more_body": False}]

            async def receive() -> Any:
                if messages:
                    return messages.pop()
                await asyncio.Event().wait()

            async def send(message: Any) -> None:
                sent.append(message)

            await app(scope, receive, send)

        asyncio.run(exchange())
        head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:]).decode())

    return ask


class Server(NamedTuple):
    process: "subprocess.Popen[str]"
    url: str

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def wait_until(self, condition: Callable[[dict[str, float]], bool], seconds: float = 20) -> dict[str, float]:
        end = time.monotonic() + seconds
        while not condition(found := self.metrics()):
            assert time.monotonic() < end, found
            time.sleep(0.05)
        return found


@pytest.fixture(scope="session")
def folders(talker, babbler, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for model in (talker, babbler):
        model.model.save_pretrained(root / model.name)
        model.tokenizer.save_pretrained(root / model.name)
    return {name: root / name for name in ("talker", "babbler")}


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts `moe-hf serve` on a free port; what is still running at the end is killed."""
    started = []

    def start(*words: str, **environment: str) -> Server:
        lean = {name: value for name, value in os.environ.items() if name != "MOE_HF_API_KEY"}
        process = subprocess.Popen(
            [sys.executable, "-m", "moe_hf", "serve", *words, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**lean, "OMP_NUM_THREADS": "1", **environment},
        )
        started.append(process)
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.communicate(timeout=20)[1]
        return Server(process, found.group())

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def server(start_server, folders) -> Server:
    """A server of both models in a process of its own."""
    return start_server(str(folders["talker"]), str(folders["babbler"]))
