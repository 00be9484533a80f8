"""Models small enough to learn two answers by heart in a second, and a console that writes into a list."""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator

import huggingface_hub
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.base.errors import CheckpointError
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_session import ChatSession
from moe_hf.inference.console import Span
from moe_hf.inference.repl import run
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import byte_tokenizer

KNOWN = {"hi": "hello you", "fish?": "a carp é"}
GREEDY = GenerationSettings(do_sample=False, max_new_tokens=24)


def small_model(tokenizer: PreTrainedTokenizerFast, **overrides) -> GPT2WithMoE:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "moe_intermediate_size": 64,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 96,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
    }
    # Positions from a table: learned by heart a little faster than rotary ones.
    shape["position_embedding_type"] = "learned"
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GPT2WithMoE(create_moe_config("tiny", vocab_size=len(tokenizer), **(shape | ids | overrides))).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def talker(tokenizer) -> CausalTextModel:
    """A model that has learned `KNOWN` by heart and ends its answers."""
    model = small_model(tokenizer).train()
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
    return CausalTextModel(model.eval(), tokenizer, "talker")


@pytest.fixture(scope="session")
def babbler(tokenizer) -> CausalTextModel:
    """A dense model with random weights, which goes on until it is stopped."""
    model = small_model(tokenizer, mlp_layer_types=["dense"] * 3)
    # Without special tokens every token shows, and none ends the answer.
    model.generation_config.suppress_tokens = sorted(tokenizer.added_tokens_decoder)
    return CausalTextModel(model, tokenizer, "babbler")


@pytest.fixture
def session(talker) -> ChatSession:
    return ChatSession(talker, GREEDY)


class ListConsole:
    """Entries come from a list (an exception in it is raised), what is shown goes into lists."""

    colour = False
    can_prefill = True
    can_draw_markdown = True
    markdown = True

    def __init__(self, entries: list[str | type[BaseException] | Callable[[str], str]]) -> None:
        self.entries = list(entries)
        self.answers: list[str] = []
        self.notices: list[str] = []
        self.errors: list[str] = []
        self.tables: list[str] = []
        self._answering = False

    def ask(self, prefill: str = "") -> str:
        if not self.entries:
            raise EOFError
        entry = self.entries.pop(0)
        if isinstance(entry, str):
            return entry
        if isinstance(entry, type):
            raise entry
        return entry(prefill)

    def answer(self, text: str) -> None:
        if not self._answering:
            self.answers.append("")
            self._answering = True
        self.answers[-1] += text

    def end_answer(self) -> None:
        self._answering = False

    def show(self, lines: list[list[Span]]) -> None:
        self.tables.append("\n".join("".join(span.text for span in line) for line in lines))

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def error(self, text: str) -> None:
        self.errors.append(text)

    @contextlib.contextmanager
    def interruptible(self, stop: threading.Event) -> Iterator[None]:
        yield


@pytest.fixture
def list_console() -> type[ListConsole]:
    return ListConsole


@pytest.fixture
def talk(talker, babbler, list_console):
    """Runs a chat over the entries given and returns it, for its session and what its console showed."""

    def load(source):
        if source != "babbler":
            raise CheckpointError(f"there is no folder {source}")
        return babbler

    def talk(*entries, model=talker, settings=GREEDY, transcript=None):
        chat = Chat(ChatSession(model, settings), list_console(list(entries)), load, transcript)
        run(chat)
        return chat

    return talk


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    small_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def here(saved, tmp_path, monkeypatch):
    """The present folder, with two runs: a whole one with a checkpoint, and one that has only checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    for name in ("whole", "whole/checkpoint-10", "begun/checkpoint-9", "begun/checkpoint-10"):
        shutil.copytree(saved, tmp_path / "runs" / name)
    (tmp_path / "runs" / "whole" / "run.yaml").write_text("")
    (tmp_path / "runs" / "whole" / "logs").mkdir()
    (tmp_path / "runs" / "empty").mkdir()
    os.utime(tmp_path / "runs" / "begun" / "checkpoint-10" / "model.safetensors", (100, 100))
    return tmp_path
