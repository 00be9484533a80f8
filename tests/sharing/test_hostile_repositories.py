"""Of a repository on the Hub `from_pretrained` refuses what is damaged or leads elsewhere, and it runs nothing."""

import json
import re

import pytest
from transformers import AutoModelForCausalLM

from moe_hf import CheckpointError, GPT2WithMoE
from moe_hf.inference.text_model import CausalTextModel

REPO = "me/moe"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def files(saved_model):
    return {path.name: path.read_bytes() for path in saved_model.iterdir()}


def with_index(change):
    def changed(files):
        index = json.loads(files[INDEX])
        change(index)
        return {INDEX: json.dumps(index).encode()}

    return changed


def first_shard(change):
    def changed(files):
        name = min(name for name in files if name.endswith(".safetensors"))
        return {name: change(files[name])}

    return changed


def named(file):
    return with_index(lambda index: index["weight_map"].update({"lm_head.weight": file}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (first_shard(lambda content: content[:-1]), "can't be read"),
        (first_shard(lambda content: content[:20]), "can't be read"),
        (first_shard(lambda content: b"\xff" * 8 + content[8:]), "can't be read"),
        (first_shard(lambda content: b"\x00" * len(content)), "can't be read"),
        (named("../../evil.safetensors"), "evil.safetensors"),
        (named("/etc/passwd.safetensors"), "passwd.safetensors"),
        (named("pytorch_model.bin"), "pytorch_model.bin"),
        (lambda files: {INDEX: b"[1]"}, INDEX),
        (lambda files: {INDEX: b"{"}, INDEX),
        (lambda files: {INDEX: b"{}"}, INDEX),
        (lambda files: {INDEX: b'{"metadata": {}, "weight_map": [1]}'}, INDEX),
    ],
)
@pytest.mark.parametrize("loader", [AutoModelForCausalLM, GPT2WithMoE])
def test_what_is_damaged_or_leads_elsewhere_is_a_checkpoint_error(hub, files, change, text, loader):
    hub.add(REPO, {**files, "pytorch_model.bin": b"\x80\x04"})
    hub.add(REPO, change(files))
    with pytest.raises(CheckpointError, match=re.escape(text)):
        loader.from_pretrained(REPO)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"[" * 100_000, b"\xff\xfe", b"{}"])
def test_a_configuration_that_is_none_is_one_too(hub, files, content):
    hub.add(REPO, {**files, "config.json": content})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        GPT2WithMoE.from_pretrained(REPO)


def test_a_shard_that_is_not_there_is_named(hub, files):
    hub.add(REPO, files)
    hub.add(REPO, named("nowhere.safetensors")(files))
    with pytest.raises(OSError, match=r"nowhere\.safetensors"):
        AutoModelForCausalLM.from_pretrained(REPO)


@pytest.mark.parametrize("model_type", ["gpt2_moe", "strange"])
def test_code_in_a_repository_is_not_run_unless_somebody_says_so(hub, files, model_type, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n".encode()
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = json.loads(files["config.json"]) | {"model_type": model_type, "auto_map": classes}
    tokenizer = json.loads(files["tokenizer_config.json"])
    hub.add(REPO, {**files, "config.json": json.dumps(config).encode(), "evil.py": code})
    hub.add(
        REPO,
        {"tokenizer_config.json": json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}).encode()},
    )
    # Nobody is there to be asked.
    monkeypatch.setattr("sys.stdin", None)
    if model_type == "gpt2_moe":
        assert CausalTextModel.load(REPO).model.config.model_type == "gpt2_moe"
    else:
        with pytest.raises((CheckpointError, OSError, ValueError), match=r"trust_remote_code|strange|code"):
            CausalTextModel.load(REPO)
    assert not ran.exists()
