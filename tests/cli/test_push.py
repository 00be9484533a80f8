"""`moe-hf push` says what went where; one that is killed is taken up by the next."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_hf import GPT2WithMoE
from moe_hf.__main__ import main
from moe_hf.export.self_contained import export_self_contained
from moe_hf.models.cards.described import card_of_folder
from moe_hf.models.info import get_moe_model_info
from tests.sharing import conftest as models

folder, saved_model = models.folder, models.saved_model


def test_push_tells_what_it_pushed_and_what_it_left(hub, folder, capsys):
    (folder / "training_args.bin").write_bytes(b"x")
    words = ["push", str(folder), "me/moe", "--private", "--revision", "v1", "--message", "It"]
    assert main(words) == 0
    said = capsys.readouterr().out
    commit = hub.repos["me/moe"].branches["v1"]
    count = len(list(folder.iterdir()))
    assert said.splitlines() == [
        f"pushed {count} files, private: {hub.url}/me/moe/commit/{commit}",
        "card:     written from the model's configuration",
        "not sent: training_args.bin (a pickle, which can run code)",
        "get it:   moe-hf pull me/moe moe --revision v1",
    ]
    assert hub.repos["me/moe"].commits[commit].message == "It"
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"nothing new: {count} files")


@pytest.mark.parametrize("has_card", [False, True])
def test_a_self_contained_push_has_what_a_self_contained_export_has(hub, folder, capsys, has_card):
    if has_card:
        (folder / "README.md").write_text(card_of_folder(folder, "YOUR-NAME/moe", get_moe_model_info))
    out = folder.parent / "out"
    export_self_contained(str(folder), out)
    assert main(["push", str(folder), "me/moe", "--self_contained"]) == 0
    pushed = {name: hub.content("me/moe", name) for name in hub.names("me/moe")}
    for path in out.iterdir():
        if path.suffix in (".py", ".safetensors") or path.name == "config.json":
            assert pushed[path.name] == path.read_bytes(), path.name
    assert "auto_map" in json.loads(pushed["config.json"])
    card = pushed["README.md"].decode()
    assert 'AutoModelForCausalLM.from_pretrained("me/moe", trust_remote_code=True)' in card
    assert "![expert utilization](expert_utilization.png)" in card
    assert "cannot be loaded" not in card
    assert "auto_map" not in (folder / "config.json").read_text()
    # The class of this package, not the code of the repository, as long as nobody says otherwise.
    assert type(AutoModelForCausalLM.from_pretrained("me/moe")) is GPT2WithMoE


def test_what_is_wrong_is_said_in_a_line(hub, folder, capsys, monkeypatch):
    assert main(["push", str(folder), "others/moe"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("moe-hf push: the token in HF_TOKEN may not do that to others/moe")
    assert said.count("\n") == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["push", str(folder), "me/moe"]) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


WITHOUT_THE_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "moe_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("me/moe", trust_remote_code=True)
ids = AutoTokenizer.from_pretrained("me/moe", trust_remote_code=True)("a b c", return_tensors="pt").input_ids
assert type(model).__module__.startswith("transformers_modules.me.moe."), type(model).__module__
torch.save(model(ids).logits.detach(), sys.argv[1])
"""


def test_a_model_that_is_pushed_with_its_code_loads_from_the_hub_without_the_package(hub, folder, tmp_path):
    assert main(["push", str(folder), "me/moe", "--self_contained"]) == 0
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, str(tmp_path / "logits")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    ids = AutoTokenizer.from_pretrained(folder)("a b c", return_tensors="pt").input_ids
    expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits"), expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_push_that_is_killed_is_taken_up_by_the_next(hub, folder, capsys):
    sent = [0]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(folder.parent / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}

    def kill():
        sent[0] = sum(hub.uploaded.values())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    # After the first large file has arrived.
    hub.on.append(("POST .*/verify", kill))
    command = [sys.executable, "-m", "moe_hf", "push", str(folder), "me/moe"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.wait(timeout=120) == -signal.SIGKILL, process.stderr.read().decode()
    process.stderr.close()
    assert sent[0] > 0
    assert hub.names("me/moe") == set()
    whole = [oid for oid in hub.uploaded if oid in hub.blobs]
    before = dict(hub.uploaded)
    assert main(["push", str(folder), "me/moe"]) == 0
    assert all(hub.uploaded[oid] == before[oid] for oid in whole)
    assert "model.safetensors.index.json" in hub.names("me/moe")
