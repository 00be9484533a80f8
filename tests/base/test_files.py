"""Files and folders appear whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from moe_hf.base.files import atomic_file, atomic_folder


def test_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_file(target) as aside:
        aside.write_text("new", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [target]


def _fill_and_fail(context, name=None):
    with context as aside:
        (aside / name if name else aside).write_text("half", encoding="utf-8")
        raise RuntimeError("killed")


def test_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError, match="killed"):
        _fill_and_fail(atomic_file(target))
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_folder_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError, match="killed"):
        _fill_and_fail(atomic_folder(target), "new")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_complete_folder_replaces_the_old_one_and_makes_its_parents(tmp_path):
    target = tmp_path / "runs" / "model"
    for name in ("first", "second"):
        with atomic_folder(target) as aside:
            (aside / name).mkdir()
            (aside / name / "file").touch()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder_in_its_place(tmp_path, monkeypatch, failing):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    real, calls = os.replace, []

    def replace(source, destination):
        calls.append(destination)
        if len(calls) == failing:
            raise PermissionError(13, "no")
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError), atomic_folder(target) as aside:
        (aside / "new").touch()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


WRITER = """
import sys, time
from moe_hf.base.files import atomic_file, atomic_folder
kind, path = sys.argv[1:]
with {"file": atomic_file, "folder": atomic_folder}[kind](path) as aside:
    (aside / "half" if kind == "folder" else aside).touch()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders can't be locked")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_goes_with_the_next_but_not_what_a_living_one_writes(tmp_path, kind):
    target = tmp_path / "a[1]"
    command = [sys.executable, "-c", WRITER, kind, str(target)]
    # By numbers of processes this would be a living one's: ours.
    (tmp_path / f".a[1].partial-{os.getpid()}").touch()
    kept = {".a[1].partial-x", ".b.partial-1", ".a.partial-1"}
    for name in kept:
        (tmp_path / name).touch()

    def write() -> set[str]:
        with (atomic_folder if kind == "folder" else atomic_file)(target) as aside:
            aside.touch()
        return {path.name for path in tmp_path.iterdir()} - kept

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        partial = f".a[1].partial-{writer.pid}"
        assert write() == {"a[1]", partial}
        writer.send_signal(signal.SIGKILL)
    assert (tmp_path / partial).exists()
    assert write() == {"a[1]"}


@pytest.mark.skipif(sys.platform == "win32", reason="folders can't be locked")
def test_a_folder_that_a_kill_between_two_renames_took_away_is_put_back(tmp_path):
    target = tmp_path / "model"
    (tmp_path / ".model.old-7").mkdir()
    (tmp_path / ".model.old-7" / "old").touch()
    (tmp_path / ".model.partial-7").mkdir()
    with pytest.raises(RuntimeError, match="killed"):
        _fill_and_fail(atomic_folder(target), "new")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_came_meanwhile_is_not_replaced_where_that_is_refused(tmp_path):
    target = tmp_path / "model"

    def require_free() -> None:
        if target.exists():
            raise RuntimeError("taken")

    def write() -> None:
        with atomic_folder(target, require_free) as aside:
            (aside / "new").touch()
            target.mkdir()
            (target / "letter").touch()

    with pytest.raises(RuntimeError, match="taken"):
        write()
    assert [path.name for path in target.iterdir()] == ["letter"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="links ask for rights there")
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_stays_one_and_what_it_leads_to_is_replaced(tmp_path, exists):
    target, link = tmp_path / "far" / "model", tmp_path / "link"
    if exists:
        target.mkdir(parents=True)
        (target / "old").touch()
    link.symlink_to(target)
    with atomic_folder(link) as aside:
        (aside / "new").touch()
    assert link.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link", "model", "new"]
