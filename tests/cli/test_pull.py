"""`moe-hf pull` says what arrived, and in a line what is wrong."""

from moe_hf.__main__ import main
from tests.sharing import conftest as models

saved_model = models.saved_model


def test_pull_tells_what_arrived(hub, saved_model, capsys, tmp_path, monkeypatch):
    files = {path.name: path.read_bytes() for path in saved_model.iterdir()}
    commit = hub.add("me/moe", {**files, "old.bin": b"x", "m.py": b"x = 1"})
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "me/moe", "moe"]) == 0
    size = sum(map(len, files.values())) + len(b"x = 1")
    assert capsys.readouterr().out.splitlines() == [
        f"moe: {len(files) + 1} files, {size / 1e3:.1f} kB, of me/moe at {commit}",
        "left out: old.bin (pickles, which can run code)",
        "code:     m.py; runs with trust_remote_code=True alone, so read it first",
        "chat:     moe-hf chat --model moe",
    ]
    assert {path.name for path in (tmp_path / "moe").iterdir()} == {*files, "m.py"}


def test_what_is_wrong_is_said_in_a_line(hub, tmp_path, capsys):
    for words, text in (
        (["me/nothing", str(tmp_path / "a")], "there is no model me/nothing on the Hub"),
        (["me/nothing", str(tmp_path / "a"), "--revision", "v2"], "there is no model me/nothing on the Hub"),
        (["no name", str(tmp_path / "a")], "'no name' is no name of a repository"),
    ):
        assert main(["pull", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"moe-hf pull: {text}")
        assert said.count("\n") == 1


def test_a_model_without_a_tokenizer_is_not_to_be_talked_to(hub, saved_model, capsys, tmp_path):
    files = {path.name: path.read_bytes() for path in saved_model.iterdir() if "token" not in path.name}
    hub.add("me/moe", files)
    assert main(["pull", "me/moe", str(tmp_path / "moe")]) == 0
    assert "chat" not in capsys.readouterr().out
