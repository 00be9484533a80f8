"""What waits for a package happens once, at its import, and the package is as without it."""

import subprocess
import sys
import textwrap

import pytest

from moe_hf.base.after_import import after_import


def test_a_package_that_is_there_already_is_not_waited_for() -> None:
    done: list[str] = []
    after_import("pytest", lambda: done.append("now"))
    assert done == ["now"]


def test_an_absent_package_is_not_found_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    after_import("nosuch_package_anywhere", lambda: pytest.fail("there is nothing to wait for"))
    with pytest.raises(ModuleNotFoundError, match="nosuch_package_anywhere"):
        __import__("nosuch_package_anywhere")


def test_the_action_runs_once_when_the_package_is_executed_and_leaves_its_loader_alone(tmp_path) -> None:
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "__init__.py").write_text("value = 1\n")
    (tmp_path / "later" / "part.py").write_text("value = 2\n")
    script = """
    import importlib.machinery, importlib.util, sys
    finders = list(sys.meta_path)
    from moe_hf.base.after_import import after_import
    seen = []
    after_import("later", lambda: seen.append(sys.modules["later"].value))
    # Whether it is there is asked by many who don't import it then.
    assert importlib.util.find_spec("later").origin.endswith("__init__.py") and seen == []
    import later.part
    import later
    assert seen == [1], seen
    assert sys.meta_path[-len(finders):] == finders and importlib.util.find_spec("later").loader is later.__loader__
    assert not [finder for finder in sys.meta_path if getattr(finder, "_package", "") == "later"]
    assert type(later.__spec__.loader) is type(later.__loader__) is importlib.machinery.SourceFileLoader
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert run.returncode == 0, run.stderr
