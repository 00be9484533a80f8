"""The version stands in one place."""

import ast
import re
import tomllib
from pathlib import Path

import moe_hf
from moe_hf import version


def test_the_version_can_be_read_without_importing_the_package() -> None:
    (assignment,) = [
        node for node in ast.parse(Path(version.__file__).read_text()).body if isinstance(node, ast.Assign)
    ]
    assert ast.literal_eval(assignment.value) == moe_hf.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", moe_hf.__version__)


def test_the_changelog_and_the_build_know_the_same_version() -> None:
    root = Path(version.__file__).parents[1]
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert build["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "moe_hf.version.__version__"}
