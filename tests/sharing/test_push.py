"""A folder is pushed whole or not at all, with a card, over the Hub's protocol."""

import json
import logging
import re

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_hf import CheckpointError, ConfigError
from moe_hf.models.cards.card import CARD_FILE, is_unedited, placeholder, split_card
from moe_hf.models.cards.described import card_of_folder
from moe_hf.models.info import get_moe_model_info
from moe_hf.quantization.directory import quantize_directory
from moe_hf.quantization.quantization_config import MoEQuantizationConfig
from moe_hf.sharing.push import push_folder

REPO = "me/moe"


def test_what_was_pushed_loads_from_the_hub_as_it_was(hub, folder):
    (folder / "training_args.bin").write_bytes(b"x")
    report = push_folder(folder, REPO, private=True)
    assert report.repo_id == REPO
    assert report.private
    assert hub.repos[REPO].private
    assert report.is_new
    assert report.url == f"{hub.url}/{REPO}/commit/{report.commit}"
    assert report.left_out == {"training_args.bin": "a pickle, which can run code"}
    assert hub.names(REPO) == {path.name for path in folder.iterdir()} - {"training_args.bin"} | {CARD_FILE}
    assert len([name for name in hub.names(REPO) if name.endswith(".safetensors")]) > 2
    here = AutoModelForCausalLM.from_pretrained(folder)
    there = AutoModelForCausalLM.from_pretrained(REPO)
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(one, other)
    assert there.generation_config.max_new_tokens == 7
    tokenizer = AutoTokenizer.from_pretrained(REPO)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template is not None
    assert hub.leaks == []
    card = hub.content(REPO, CARD_FILE).decode()
    assert f'from_pretrained("{REPO}")' in card
    assert "![expert utilization](expert_utilization.png)" in card
    assert not (folder / CARD_FILE).exists()


def test_large_files_go_up_in_parts_and_what_the_hub_has_is_not_sent_again(hub, folder):
    hub.part_size = 5000
    push_folder(folder, REPO)
    sent = dict(hub.uploaded)
    large = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".png")]
    assert sum(sent.values()) == sum(path.stat().st_size for path in large)
    assert any(re.search(r"PUT /storage/\w+/2$", request) for request in hub.requests)
    commits = len(hub.repos[REPO].commits)
    report = push_folder(folder, REPO)
    assert not report.is_new
    assert hub.uploaded == sent
    assert len(hub.repos[REPO].commits) == commits


@pytest.mark.parametrize("part_size", [None, 4000])
def test_an_interrupted_upload_leaves_nothing_half_written_and_is_taken_up(hub, folder, part_size, monkeypatch):
    hub.part_size = part_size
    push_folder(folder, REPO)
    head, before = hub.repos[REPO].branches["main"], dict(hub.uploaded)
    # The client tries again a few times before it gives up, and waits for seconds in between.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    changed = max(folder.glob("model-*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(changed).items()}, changed, {"format": "pt"})
    hub.cut_upload_after = 1000
    with pytest.raises(OSError, match=r"cannot be reached for me/moe .*; try again"):
        push_folder(folder, REPO)
    assert hub.repos[REPO].branches["main"] == head
    hub.cut_upload_after = None
    cut = {oid: size for oid, size in hub.uploaded.items() if oid not in before}
    push_folder(folder, REPO)
    again = {oid: hub.uploaded[oid] - cut.get(oid, 0) for oid in hub.uploaded if hub.uploaded[oid] != before.get(oid)}
    # Of all large files the one that had not arrived.
    assert list(again.values()) == [changed.stat().st_size]
    assert hub.content(REPO, changed.name) == changed.read_bytes()


def test_a_transient_failure_is_tried_again(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut_upload_after = 10
    hub.on.append(("PUT .*", lambda: hub.on.append(("PUT .*", lambda: setattr(hub, "cut_upload_after", None)))))
    assert push_folder(folder, REPO).is_new


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_ones(hub, folder):
    push_folder(folder, REPO)
    shards = {name for name in hub.names(REPO) if name.startswith("model")}
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    for path in folder.glob("model*"):
        path.unlink()
    model.save_pretrained(folder)
    report = push_folder(folder, REPO)
    assert set(report.removed) == shards
    assert {name for name in hub.names(REPO) if name.startswith("model")} == {"model.safetensors"}
    there = AutoModelForCausalLM.from_pretrained(REPO)
    assert torch.equal(there.lm_head.weight, model.lm_head.weight)


def test_a_branch_is_made_and_pushed_to(hub, folder):
    push_folder(folder, REPO, message="first")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 9}')
    report = push_folder(folder, REPO, revision="v2", message="second")
    branches = hub.repos[REPO].branches
    assert branches["v2"] == report.commit != branches["main"]
    assert hub.repos[REPO].commits[report.commit].message == "second"
    configs = [AutoModelForCausalLM.from_pretrained(REPO, revision=name).generation_config for name in branches]
    assert [config.max_new_tokens for config in configs] == [7, 9]


def test_a_date_is_the_name_of_a_branch(hub, folder):
    assert push_folder(folder, REPO, revision="20261130").commit == hub.repos[REPO].branches["20261130"]


def test_the_code_of_an_earlier_push_does_not_stay_beside_a_model_that_knows_nothing_of_it(hub, folder):
    code = {"modeling_gpt2_moe.py": "pass\n", "config.json": (folder / "config.json").read_text()}
    push_folder(folder, REPO, added=code)
    head = hub.repos[REPO].branches["main"]
    with pytest.raises(CheckpointError, match=r"holds code that defines its model \(modeling_gpt2_moe.py\)"):
        push_folder(folder, REPO)
    assert hub.repos[REPO].branches["main"] == head
    push_folder(folder, REPO, added={**code, "modeling_gpt2_moe.py": "...\n"})
    assert hub.content(REPO, "modeling_gpt2_moe.py") == b"...\n"


def test_a_commit_of_somebody_else_in_between_is_not_written_over(hub, folder):
    push_folder(folder, REPO)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 9}')
    hub.on.append(("POST .*/preupload/", lambda: hub.add(REPO, {"notes.txt": b"from somebody else"})))
    with pytest.raises(CheckpointError, match="somebody else wrote to me/moe meanwhile, so nothing of this was added"):
        push_folder(folder, REPO)
    assert json.loads(hub.content(REPO, "generation_config.json"))["max_new_tokens"] == 7
    assert push_folder(folder, REPO).is_new
    assert hub.content(REPO, "notes.txt") == b"from somebody else"


def no_token(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def wrong_token(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)


def token_that_reads(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", list(hub.tokens)[1])


def pickles(hub, folder, monkeypatch):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def a_secret(hub, folder, monkeypatch):
    (folder / "notes.md").write_text(f"log in with {hub.token}")


def a_missing_tensor(hub, folder, monkeypatch):
    path, index = min(folder.glob("model-*.safetensors")), folder / "model.safetensors.index.json"
    tensors, table = load_file(path), json.loads(index.read_text())
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name} or {"x": tensors[name]}, path)
    table["weight_map"].pop(name)
    index.write_text(json.dumps(table))


def a_broken_card(hub, folder, monkeypatch):
    (folder / CARD_FILE).write_text("---\na: [\n---\n")


def offline(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def a_public_repository(hub, folder, monkeypatch):
    hub.add(REPO, {"a.txt": b""})


@pytest.mark.parametrize(
    ("damage", "options", "error", "text"),
    [
        (no_token, {}, ConfigError, "log in with `hf auth login`, or set HF_TOKEN"),
        (wrong_token, {}, CheckpointError, "the Hub does not know the token in HF_TOKEN; log in with"),
        (token_that_reads, {}, CheckpointError, "the token in HF_TOKEN may not do that to me/moe (You don't have"),
        (None, {"repo_id": "others/moe"}, CheckpointError, "it needs the role write, and the owner must be you"),
        (None, {"repo_id": "a/b/c"}, ConfigError, "'a/b/c' is no name of a repository"),
        (None, {"repo_id": "me/mo e"}, ConfigError, "'me/mo e' is no name of a repository"),
        (None, {"revision": "a" * 40}, ConfigError, "is a commit, to which nothing can be added; name a branch"),
        (pickles, {}, CheckpointError, "but pickles (pytorch_model.bin), which can run code"),
        (a_secret, {}, CheckpointError, "notes.md holds what looks like a token"),
        (a_missing_tensor, {}, CheckpointError, "lacks 2 of the model's tensors (lm_head"),
        (a_broken_card, {}, CheckpointError, "the metadata at the head of README.md is no YAML"),
        (offline, {}, OSError, "HF_HUB_OFFLINE is set; unset it"),
        (a_public_repository, {"private": True}, CheckpointError, "me/moe is there already and public"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_pushed(hub, folder, monkeypatch, damage, options, error, text):
    if damage is not None:
        damage(hub, folder, monkeypatch)
    before = {name: dict(repo.branches) for name, repo in hub.repos.items()}
    with pytest.raises(error, match=re.escape(text)) as caught:
        push_folder(folder, **{"repo_id": REPO, **options})
    assert {name: repo.branches for name, repo in hub.repos.items()} == before
    assert hub.uploaded == {}
    assert not any(token in str(caught.value) for token in hub.tokens)


def test_a_hub_that_cannot_be_reached_is_said(hub, folder, monkeypatch):
    hub.close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match=rf"{hub.url} cannot be reached for me/moe"):
        push_folder(folder, REPO)


def test_tokens_are_never_logged(hub, folder, monkeypatch, caplog, capfd):
    secret = list(hub.tokens)[1]
    monkeypatch.setenv("HF_TOKEN", secret)
    # The libraries' own loggers pass nothing on to the root, where caplog listens.
    for name in ("", "huggingface_hub", "transformers", "httpx", "httpx2", "httpcore", "moe_hf", "urllib3", "filelock"):
        logger = logging.getLogger(name or None)
        monkeypatch.setattr(logger, "propagate", True)
        caplog.set_level(logging.DEBUG, logger=name)
    with pytest.raises(CheckpointError):
        push_folder(folder, REPO)
    hub.tokens[secret] = ("me", True)
    push_folder(folder, REPO)
    said = caplog.text + "".join(capfd.readouterr())
    assert "/api/repos/create" in said
    assert secret not in said


def test_a_quantised_model_is_pushed_and_loads_from_the_hub(hub, folder, tmp_path):
    quantize_directory(str(folder), tmp_path / "small", MoEQuantizationConfig(8))
    report = push_folder(tmp_path / "small", REPO)
    assert report.notice is None
    assert 'from_pretrained("me/moe")' in hub.content(REPO, CARD_FILE).decode()
    here, there = (AutoModelForCausalLM.from_pretrained(place) for place in (tmp_path / "small", REPO))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(here(ids).logits, there(ids).logits)


class TestCard:
    """Whose card is pushed: one that somebody wrote is never replaced."""

    OWN = "# Mine\n\nBy hand.\n"

    def test_metadata_is_added_to_a_card_without_any(self, hub, folder):
        (folder / CARD_FILE).write_text(self.OWN)
        assert push_folder(folder, REPO).card == "README.md of the folder, with metadata added"
        card = hub.content(REPO, CARD_FILE).decode()
        assert card.endswith(self.OWN)
        assert split_card(card).metadata["library_name"] == "transformers"
        assert (folder / CARD_FILE).read_text() == self.OWN

    def test_a_card_with_metadata_is_pushed_as_it_is(self, hub, folder):
        own = f"---\nlicense: mit\n---\n{self.OWN}"
        (folder / CARD_FILE).write_text(own)
        push_folder(folder, REPO)
        assert hub.content(REPO, CARD_FILE).decode() == own

    @pytest.mark.parametrize("front", ["", "---\nlicense: mit\n---\n"])
    def test_a_card_of_ones_own_gets_a_section_on_the_code_that_goes_with_it(self, hub, folder, front):
        (folder / CARD_FILE).write_text(front + self.OWN)
        report = push_folder(folder, REPO, added={"modeling_gpt2_moe.py": "pass\n"})
        card = hub.content(REPO, CARD_FILE).decode()
        assert report.card.endswith("how to load it added")
        assert self.OWN in card
        assert f'from_pretrained("{REPO}", trust_remote_code=True)' in card
        assert (folder / CARD_FILE).read_text() == front + self.OWN
        (folder / CARD_FILE).write_text(card)
        push_folder(folder, REPO, added={"modeling_gpt2_moe.py": "pass\n"})
        assert hub.content(REPO, CARD_FILE).decode() == card

    def test_a_written_card_gets_the_name_of_the_repository(self, hub, folder):
        (folder / CARD_FILE).write_text(card_of_folder(folder, placeholder("moe"), get_moe_model_info))
        push_folder(folder, REPO)
        card = hub.content(REPO, CARD_FILE).decode()
        assert "YOUR-NAME" not in card
        assert f'from_pretrained("{REPO}")' in card
        assert is_unedited(card)

    @pytest.mark.parametrize("written_here", [False, True])
    def test_a_card_that_was_changed_on_the_hub_stays(self, hub, folder, written_here):
        push_folder(folder, REPO)
        edited = hub.content(REPO, CARD_FILE).replace(b"# moe", b"# My moe")
        hub.add(REPO, {CARD_FILE: edited})
        if written_here:
            (folder / CARD_FILE).write_text(card_of_folder(folder, placeholder("moe"), get_moe_model_info))
        (folder / "generation_config.json").write_text('{"max_new_tokens": 9}')
        report = push_folder(folder, REPO)
        assert report.card == "the one on the Hub, which somebody wrote or changed"
        assert report.is_new
        assert hub.content(REPO, CARD_FILE) == edited

    def test_one_that_nobody_changed_follows_the_model(self, hub, folder):
        push_folder(folder, REPO)
        (folder / "expert_utilization.png").unlink()
        push_folder(folder, REPO)
        assert b"expert_utilization.png" not in hub.content(REPO, CARD_FILE)
