"""A model's folder that is damaged, or made to do harm, ends every command in one line, before anything is written."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_hf.__main__ import main
from moe_hf.text.tokenizers import byte_tokenizer

Change = Callable[[bytes], bytes]


def field(**values: object) -> Change:
    return lambda raw: json.dumps(json.loads(raw) | values).encode()


def tensor(**values: object) -> Change:
    """A change of what the header says of the first tensor."""

    def change(raw: bytes) -> bytes:
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        next(entry for name, entry in header.items() if name != "__metadata__").update(values)
        new = json.dumps(header).encode()
        return struct.pack("<Q", len(new)) + new + raw[8 + size :]

    return change


def whole(content: bytes) -> Change:
    return lambda raw: content


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


DEEP = b'{"a":' * 100_000
WEIGHTS: list[Change] = [cut, whole(b""), lambda raw: struct.pack("<Q", 2**62) + raw[8:], tensor(dtype="F99")]
WEIGHTS += [tensor(shape=[-1, 4]), tensor(data_offsets=[0, 10**12])]
JSON = [cut, whole(b"null"), whole(b'"words"'), whole(DEEP), whole(b'{"vocab_size": ' + b"9" * 5000 + b"}")]
CONFIG = [field(num_hidden_layers=10**9), field(dtype="evil"), field(vocab_size="9"), field(model_type=["a"])]
CONFIG += [field(quantization_config=5), field(_experts_implementation="evil")]
GENERATION = [field(eos_token_id="x"), field(max_new_tokens=-5), field(cache_implementation="evil")]
TOKENIZER = [field(tokenizer_class=5), field(model_max_length="x"), field(eos_token={"a": 1})]
FILES = {
    "model.safetensors": WEIGHTS,
    "config.json": JSON + CONFIG,
    "generation_config.json": JSON + GENERATION,
    "tokenizer_config.json": JSON + TOKENIZER,
    "tokenizer.json": [cut, whole(b"null")],
}
CASES = [
    pytest.param(name, change, id=f"{name}-{i}") for name, kinds in FILES.items() for i, change in enumerate(kinds)
]
# None of these commands looks at the others' files.
READS = {
    "info": {"config.json"},
    "chat": set(FILES),
    "eval": set(FILES) - {"generation_config.json"},
    "train": set(FILES),
}


@pytest.fixture(scope="module")
def native_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    sizes |= {"num_key_value_heads": 1, "num_local_experts": 2, "max_position_embeddings": 64}
    folder = tmp_path_factory.mktemp("native") / "model"
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["own", "native"])
@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_damaged_folder_ends_in_one_line(
    kind: str, name: str, change: Change, model_folder: Path, native_folder: Path, tmp_path: Path, capsys, recwarn
) -> None:
    folder, text, run = tmp_path / "model", tmp_path / "text.txt", tmp_path / "run"
    shutil.copytree({"own": model_folder, "native": native_folder}[kind], folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    text.write_text("a text")
    words = {"info": [str(folder)], "chat": ["--model", str(folder), "-p", "hi", "--max_new_tokens", "2"]}
    words["eval"] = [str(folder), "--data", str(text)]
    words["train"] = f"--model {folder} --data {text} --max_steps 1 --output_dir {run} --context_length 16".split()
    codes = {}
    for command in (command for command, files in READS.items() if name in files):
        # What is raised here would be a traceback there.
        codes[command] = main([command, *words[command]])
        said = capsys.readouterr().err.strip().splitlines()
        assert codes[command] == 0 or (said and str(said[-1]).strip()), (command, said)
    assert any(codes.values()), "nothing noticed the damage"
    assert not (run / "model.safetensors").exists() or codes["train"] == 0


def test_settings_of_sampling_without_the_word_are_saved_with_it(native_folder: Path, tmp_path: Path, capsys) -> None:
    folder, text, run = tmp_path / "model", tmp_path / "text.txt", tmp_path / "run"
    shutil.copytree(native_folder, folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "top_p": 0.9}')
    text.write_text("a text")
    words = f"--model {folder} --data {text} --max_steps 1 --output_dir {run} --context_length 16".split()
    assert main(["train", *words]) == 0
    saved = json.loads((run / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"]) == (True, 0.7)
