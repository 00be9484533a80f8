"""Files and folders appear whole or not at all."""

import pytest

from moe_hf.base.files import whole_file, whole_folder


def test_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "a.txt"
    with whole_file(target) as aside:
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
        _fill_and_fail(whole_file(target))
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_folder_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError, match="killed"):
        _fill_and_fail(whole_folder(target), "new")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_complete_folder_replaces_the_old_one_and_makes_its_parents(tmp_path):
    target = tmp_path / "runs" / "model"
    for name in ("first", "second"):
        with whole_folder(target) as aside:
            (aside / name).mkdir()
            (aside / name / "file").touch()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(target.parent.iterdir()) == [target]
