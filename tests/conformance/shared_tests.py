"""Brings transformers' own shared model tests here: the source distribution of the installed version, as a package.

Wheels come without tests, so the source distribution is fetched from the package registry once per version and kept in
the user's cache; nothing of it is part of this project. It holds the modules that stand directly in `tests/`, not the
folders below; `STAND_INS` is for the few names that the former import from the latter.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import warnings
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import transformers

PACKAGE = "transformers_shared_tests"
MODULE_NAME = re.compile(r"[A-Za-z_]\w*\.py", re.ASCII)


class ExportTesterMixin:
    """Tests of exporting a model, which the source distribution leaves out."""


class GenerationTesterMixin:
    """Tests of generation, which it leaves out as well; this project's own table of family tests has them."""


# Module below the package -> what others import from it.
STAND_INS: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": ExportTesterMixin},
    "generation.test_utils": {"GenerationTesterMixin": GenerationTesterMixin},
    # Arguments that every configuration takes, and keeps.
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["SomeModel"],
            "id2label": {0: "label"},
            "label2id": {"label": 0},
            "problem_type": "regression",
        }
    },
}


class SharedTestsMissing(RuntimeError):
    """The tests could not be fetched; a run that asked for them fails with this."""


def cache_folder() -> Path:
    """Where the tests of each version are kept; MOE_HF_CONFORMANCE_CACHE moves it."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MOE_HF_CONFORMANCE_CACHE") or user_cache / "moe_hf" / "conformance")


def shared_tests_folder(version: str = transformers.__version__) -> Path:
    """The folder with the test modules of that version, fetched if it is not there yet.

    Raises:
        SharedTestsMissing: the registry has no such source distribution or cannot be reached.
    """
    folder = cache_folder() / f"transformers-{version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unpacked = Path(scratch) / "tests"
        unpack_test_modules(_download(version, Path(scratch)), unpacked)
        try:
            # In one step: a run that is broken off leaves no half of it, and two at once do not mix theirs.
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def _download(version: str, folder: Path) -> Path:
    wanted = f"transformers=={version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), wanted], capture_output=True, text=True)
    archives = sorted(folder.glob("transformers-*.tar.gz"))
    if done.returncode or len(archives) != 1:
        raise SharedTestsMissing(
            f"the source distribution of {wanted} could not be fetched, and `-m conformance` needs it; check that pip "
            f"reaches a package registry, or unpack its tests/*.py into {cache_folder()}/transformers-{version}:\n"
            + (done.stderr or done.stdout).strip()
        )
    return archives[0]


def unpack_test_modules(archive: Path, folder: Path) -> list[str]:
    """Write the Python files that stand directly in the archive's `tests/` to a new folder, and name them.

    An archive is data from elsewhere: of its paths only plain module names are used, and links are left out.

    Raises:
        SharedTestsMissing: the archive holds no tests of models.
    """
    folder.mkdir()
    names = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isreg() or len(parts) != 3 or parts[1] != "tests" or not MODULE_NAME.fullmatch(parts[2]):
                continue
            source = tar.extractfile(member)
            assert source is not None
            with source, (folder / parts[2]).open("wb") as target:
                shutil.copyfileobj(source, target)
            names.append(parts[2])
    if "test_modeling_common.py" not in names:
        raise SharedTestsMissing(f"{archive.name} holds no tests/test_modeling_common.py; it has {sorted(names)}")
    return names


def shared_tests(module: str) -> types.ModuleType:
    """One module of transformers' tests, such as "test_modeling_common".

    Raises:
        SharedTestsMissing: it is neither in the cache nor to be had from the registry.
    """
    if PACKAGE not in sys.modules:
        _add_package(PACKAGE, [str(shared_tests_folder())])
        for name, members in STAND_INS.items():
            _add_package(f"{PACKAGE}.{name.split('.')[0]}", [])
            vars(_add_package(f"{PACKAGE}.{name}", [])).update(members)
    with warnings.catch_warnings(), mock.patch("transformers.utils.direct_transformers_import"):
        # Its marks are not registered here. The function would import transformers anew, from the tests' folder.
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{PACKAGE}.{module}")


def _add_package(name: str, path: list[str]) -> types.ModuleType:
    package = types.ModuleType(name)
    package.__path__ = path
    sys.modules[name] = package
    return package
