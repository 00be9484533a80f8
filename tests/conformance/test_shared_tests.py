"""Fetching transformers' tests: what is taken from an archive, and what happens when there is none."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conformance.shared_tests import SharedTestsMissing, shared_tests_folder, unpack_test_modules

ROOT = Path(__file__).parents[2]
CONTENT = b"answer = 42\n"


def archive_with(path: Path, *names: str, links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT)
            tar.addfile(member, io.BytesIO(CONTENT))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a pip that knows no registry."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("MOE_HF_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_only_the_modules_of_the_tests_folder_are_unpacked(tmp_path):
    wanted = ["a-1.0/tests/test_modeling_common.py", "a-1.0/tests/test_training_mixin.py"]
    others = ["a-1.0/setup.py", "a-1.0/tests/models/test_x.py", "a-1.0/tests/data.json", "a-1.0/src/tests/test_y.py"]
    archive = archive_with(tmp_path / "a.tar.gz", *wanted, *others)
    names = unpack_test_modules(archive, tmp_path / "out")
    assert sorted(names) == ["test_modeling_common.py", "test_training_mixin.py"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    assert (tmp_path / "out" / "test_training_mixin.py").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "name",
    [
        "a/tests/../../../evil.py",
        "../tests/evil.py",
        "/tests/evil.py",
        "a/tests/..\\evil.py",
        "a/tests/.py",
        "a/tests/C:evil.py",
        "a/tests/sub/../../evil.py",
    ],
)
def test_no_path_leaves_the_folder(tmp_path, name):
    inner = tmp_path / "x" / "y"
    inner.mkdir(parents=True)
    archive = archive_with(inner / "a.tar.gz", "a/tests/test_modeling_common.py", name)
    taken = unpack_test_modules(archive, inner / "out")
    written = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.py"))
    assert written == sorted(f"x/y/out/{module}" for module in taken)
    assert set(taken) <= {"test_modeling_common.py", "evil.py"}


def test_links_are_left_out(tmp_path):
    (tmp_path / "secret.py").write_bytes(b"untouched")
    links = {"a/tests/test_link.py": str(tmp_path / "secret.py")}
    archive = archive_with(tmp_path / "a.tar.gz", "a/tests/test_modeling_common.py", links=links)
    assert unpack_test_modules(archive, tmp_path / "out") == ["test_modeling_common.py"]
    assert not (tmp_path / "out" / "test_link.py").exists()


def test_an_archive_without_model_tests_is_refused(tmp_path):
    archive = archive_with(tmp_path / "a.tar.gz", "a/tests/test_other.py")
    with pytest.raises(SharedTestsMissing, match="holds no tests/test_modeling_common"):
        unpack_test_modules(archive, tmp_path / "out")


def test_a_cached_version_is_not_fetched_again(no_registry):
    (no_registry / "transformers-5.17.0").mkdir(parents=True)
    assert shared_tests_folder("5.17.0") == no_registry / "transformers-5.17.0"


def test_a_version_that_cannot_be_fetched_is_an_error_and_leaves_nothing(no_registry):
    with pytest.raises(SharedTestsMissing, match=r"transformers==5\.17\.0 could not be fetched"):
        shared_tests_folder("5.17.0")
    assert list(no_registry.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_asks_for_them_fails_without_them(no_registry):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "conformance", "tests/conformance"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode != 0
    assert "could not be fetched, and `-m conformance` needs it" in done.stdout
