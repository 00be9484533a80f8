"""A model is pulled whole, of one commit and unchanged, or not at all."""

import json
import os
import re
import shutil

import pytest
from filelock import FileLock
from huggingface_hub import constants

from moe_hf import CheckpointError, ConfigError
from moe_hf.sharing.pull import pull_model

REPO = "me/moe"


@pytest.fixture
def files(saved_model):
    return {path.name: path.read_bytes() for path in saved_model.iterdir()}


@pytest.fixture
def stored(hub, files):
    """A Hub with the model in it."""
    hub.add(REPO, {**files, ".gitattributes": b"*.safetensors filter=lfs"})
    return hub


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pulled_model_is_the_one_that_the_hub_has(stored, files, tmp_path):
    stored.add(REPO, {"pytorch_model.bin": b"x", "model.py": b"raise SystemExit", "more/notes.txt": b"here"})
    pickles = ["evil.BIN", "m.dill", "o.npy", "p.pth.tar", "pytorch_model.bin", "x.PKL"]
    stored.add(REPO, dict.fromkeys(pickles, b"x"))
    report = pull_model(REPO, tmp_path / "a" / "moe")
    wanted = {**files, "model.py": b"raise SystemExit", "more/notes.txt": b"here"}
    assert contents(tmp_path) == {f"a/moe/{name}": content for name, content in wanted.items()}
    assert report.commit == stored.repos[REPO].branches["main"]
    assert report.size == sum(map(len, wanted.values()))
    assert report.names == sorted(wanted)
    assert report.left_out == pickles
    assert report.code == ["model.py"]
    assert stored.leaks == []


def test_a_private_model_needs_a_token_that_may_see_it(hub, files, tmp_path, monkeypatch):
    hub.add(REPO, files, private=True)
    pull_model(REPO, tmp_path / "moe")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "o" * 34)
    hub.tokens["hf_" + "o" * 34] = ("others", True)
    with pytest.raises(CheckpointError, match="that the token in HF_TOKEN may see; it is misspelt, or somebody else's"):
        pull_model(REPO, tmp_path / "other")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="misspelt, or private: then log in with `hf auth login`"):
        pull_model(REPO, tmp_path / "other")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(CheckpointError, match="the Hub does not know the token in HF_TOKEN"):
        pull_model(REPO, tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["moe"]


def test_a_branch_a_tag_and_a_commit_are_revisions(stored, files, tmp_path):
    first = stored.repos[REPO].branches["main"]
    stored.add(REPO, {"generation_config.json": b'{"max_new_tokens": 9}'}, branch="v2")
    pull_model(REPO, tmp_path / "first", first)
    pull_model(REPO, tmp_path / "second", "v2")
    assert (tmp_path / "first" / "generation_config.json").read_bytes() == files["generation_config.json"]
    assert json.loads((tmp_path / "second" / "generation_config.json").read_text()) == {"max_new_tokens": 9}
    with pytest.raises(CheckpointError, match="me/moe has no branch, tag or commit v3"):
        pull_model(REPO, tmp_path / "third", "v3")


def test_a_branch_that_moves_meanwhile_is_pulled_as_it_was(stored, files, tmp_path):
    stored.on.append((r"GET /storage/", lambda: stored.add(REPO, {"config.json": b"{}", "tokenizer.json": b"{}"})))
    report = pull_model(REPO, tmp_path / "moe")
    assert contents(tmp_path / "moe") == files
    assert report.commit != stored.repos[REPO].branches["main"]


def test_a_commit_that_goes_away_meanwhile_is_said(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    stored.on.append((r"GET .*/tree/", stored.repos[REPO].commits.clear))
    with pytest.raises(CheckpointError, match=r"me/moe has no branch, tag or commit .*any more"):
        pull_model(REPO, tmp_path / "moe")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", ["safetensors", "jinja"])
def test_a_download_that_breaks_is_tried_again_and_one_that_always_breaks_is_given_up(
    stored, files, suffix, tmp_path, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    name = max((name for name in files if name.endswith(suffix)), key=lambda name: len(files[name]))
    stored.cut_downloads += [name] * 20
    with pytest.raises(OSError, match=r"cannot be reached for me/moe .*; try again"):
        pull_model(REPO, tmp_path / "moe")
    assert os.listdir(tmp_path) == [".moe.pulling"]
    stored.cut_downloads[:] = [name]
    pull_model(REPO, tmp_path / "moe")
    assert stored.cut_downloads == []
    assert contents(tmp_path) == {f"moe/{name}": content for name, content in files.items()}


def test_an_interrupted_pull_is_taken_up_where_it_was(stored, files, tmp_path):
    shards = sorted(name for name in files if name.endswith(".safetensors"))

    def storage():
        return [request for request in stored.requests if request.startswith("GET /storage")]

    # A file is gone before it is fetched.
    lost = stored.blobs.pop(stored.repos[REPO].at("main").files[shards[-1]].oid)
    with pytest.raises((OSError, CheckpointError)):
        pull_model(REPO, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()
    assert os.listdir(tmp_path) == [".moe.pulling"]
    stored.store(lost, is_lfs=True)
    before = len(storage())
    pull_model(REPO, tmp_path / "moe")
    assert len(storage()) - before < len(shards)
    assert contents(tmp_path) == {f"moe/{name}": content for name, content in files.items()}


def test_a_file_that_is_not_what_the_hub_says_is_refused_and_fetched_anew(stored, files, tmp_path):
    name = min(name for name in files if name.endswith(".safetensors"))
    oid = stored.repos[REPO].at("main").files[name].oid
    stored.blobs[oid] = b"\0" * len(files[name])
    with pytest.raises(CheckpointError, match=f"{name} of me/moe does not have the checksum that the Hub names; pull"):
        pull_model(REPO, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()
    stored.blobs[oid] = files[name]
    pull_model(REPO, tmp_path / "moe")
    assert contents(tmp_path / "moe") == files


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "a//b.txt", "..\\evil.txt", "C:/evil.txt", "a:b"),
        *("a\x1b.txt", ".cache/huggingface/x", ".git/config", "sub/.git/hooks/x", "./a"),
        *(".GIT/config", ".git./config", ".Cache/huggingface/x"),
    ],
)
def test_names_that_lead_out_are_refused_before_anything_is_fetched(stored, name, tmp_path):
    stored.add(REPO, {name: b"evil"})
    with pytest.raises(CheckpointError, match=r"names files that lead out of its folder .*; don't use this model"):
        pull_model(REPO, tmp_path / "in" / "moe")
    assert os.listdir(tmp_path) == []
    assert not any("/resolve/" in request for request in stored.requests)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model-00001-of-00005.safetensors": 7}, "can't be read as safetensors"),
        ({"config.json": b"[1]"}, "not a JSON object"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "leads out of its folder"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'}, "lists x.safetensors"),
    ],
)
def test_hostile_and_cut_files_are_refused(stored, files, change, text, tmp_path):
    shard = min(name for name in files if name.endswith(".safetensors"))
    new = {}
    for name, content in change.items():
        new |= {shard: files[shard][:-content]} if isinstance(content, int) else {name: content}
    stored.add(REPO, new)
    with pytest.raises(CheckpointError, match=re.escape(text)):
        pull_model(REPO, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(hub, files, tmp_path):
    hub.add(REPO, {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    with pytest.raises(CheckpointError, match=r"but pickles \(pytorch_model.bin\), which can run code"):
        pull_model(REPO, tmp_path / "moe")
    hub.add("me/other", {"a.txt": b""})
    with pytest.raises(CheckpointError, match=r"me/other has no config.json"):
        pull_model("me/other", tmp_path / "moe")
    assert os.listdir(tmp_path) == []


def test_a_full_folder_is_kept_unless_it_is_a_model_to_replace(stored, files, tmp_path):
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="already exists and is not empty"):
        pull_model(REPO, tmp_path / "moe")
    with pytest.raises(CheckpointError, match="is not the folder of a model"):
        pull_model(REPO, tmp_path / "moe", overwrite=True)
    with pytest.raises(CheckpointError, match=r"notes.txt is a file"):
        pull_model(REPO, tmp_path / "moe" / "notes.txt")
    assert stored.requests == []
    (tmp_path / "moe" / "config.json").write_text("{}")
    pull_model(REPO, tmp_path / "moe", overwrite=True)
    assert contents(tmp_path / "moe") == files


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_into_the_folder_meanwhile_is_kept(stored, files, tmp_path, overwrite):
    def write():
        (tmp_path / "moe").mkdir(exist_ok=True)
        (tmp_path / "moe" / "notes.txt").write_text("mine")

    stored.on.append((r"GET /storage/", write))
    with pytest.raises(CheckpointError, match=r"moe (already exists|is not the folder of a model)"):
        pull_model(REPO, tmp_path / "moe", overwrite=overwrite)
    assert contents(tmp_path / "moe") == {"notes.txt": b"mine"}
    # Nothing is fetched twice.
    (tmp_path / "moe" / "notes.txt").unlink()
    before = len([request for request in stored.requests if request.startswith("GET /storage/")])
    pull_model(REPO, tmp_path / "moe")
    assert len([request for request in stored.requests if request.startswith("GET /storage/")]) == before
    assert contents(tmp_path / "moe") == files


def test_two_pulls_into_one_folder_are_not_mixed(stored, tmp_path):
    with (
        FileLock(tmp_path / ".moe.pulling.lock"),
        pytest.raises(CheckpointError, match="another call is pulling"),
    ):
        pull_model(REPO, tmp_path / "moe")


@pytest.mark.parametrize(
    ("repo_id", "error", "text"),
    [
        ("me/nothing", CheckpointError, "there is no model me/nothing on the Hub"),
        ("a/b/c", ConfigError, "'a/b/c' is no name of a repository"),
    ],
)
def test_a_name_that_is_none_is_said(hub, repo_id, error, text, tmp_path):
    with pytest.raises(error, match=re.escape(text)):
        pull_model(repo_id, tmp_path / "moe")


def test_a_hub_that_is_not_asked_or_not_there_is_said(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
            pull_model(REPO, tmp_path / "moe")
    stored.close()
    with pytest.raises(OSError, match="cannot be reached for me/moe"):
        pull_model(REPO, tmp_path / "moe")


def test_a_repository_may_have_a_file_that_is_called_lock(stored, files, tmp_path):
    stored.add(REPO, {".lock": b"theirs"})
    held = []
    stored.on.append((r"GET /storage/", lambda: held.append((tmp_path / ".moe.pulling.lock").exists())))
    pull_model(REPO, tmp_path / "moe")
    assert held == [True]
    assert contents(tmp_path) == {f"moe/{name}": content for name, content in (files | {".lock": b"theirs"}).items()}


def test_a_folder_may_be_named_from_home(stored, files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert pull_model(REPO, "~/moe").folder == tmp_path / "home" / "moe"
    assert contents(tmp_path / "home" / "moe") == files
    assert not (tmp_path / "~").exists()


def test_a_listing_of_several_pages_is_read_to_its_end(stored, files, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.sharing.hub_server.PAGE", 3)
    pull_model(REPO, tmp_path / "moe")
    assert contents(tmp_path / "moe") == files
    shutil.rmtree(tmp_path / "moe")
