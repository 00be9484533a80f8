"""The rules of the house that import-linter cannot see, checked on the source itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe_hf.base.optional import OPTIONAL_PACKAGES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "moe_hf"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def test_import_contracts_hold():
    linter = pytest.importorskip("importlinter", reason="import-linter is in the dev extra")
    assert linter is not None
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_says_in_its_first_line_what_it_is_for(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no module docstring"
    first = docstring.split("\n\n")[0]
    assert first.rstrip().endswith("."), f"not a sentence: {first!r}"


def test_no_module_postpones_annotations():
    # Auto registration reads `config: SomeConfig` from the annotation; postponed, it would be a string.
    guilty = [path for path in SOURCES if "from __future__ import annotations" in path.read_text(encoding="utf-8")]
    assert guilty == []


def test_imports_are_absolute_and_from_the_module_itself():
    # The exporter rewrites `from moe_hf.a.b import c` and nothing else.
    guilty = []
    for path, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                guilty.append(f"{path}: relative import")
            if isinstance(node, ast.Import) and any(name.name.split(".")[0] == "moe_hf" for name in node.names):
                guilty.append(f"{path}: import moe_hf...")
    assert guilty == []


def test_only_one_file_names_optional_packages():
    modules = {package.module.split(".")[0] for package in OPTIONAL_PACKAGES.values()}
    guilty = []
    for path, tree in _trees():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            # Kernels are written in Triton; nobody imports them where it is absent.
            allowed = {"triton"} if path.parent.name == "triton" else set()
            guilty += [f"{path}: {name}" for name in names if name.split(".")[0] in modules - allowed]
    assert guilty == []


def test_what_loads_transformers_lies_in_rooms_that_load_it_first():
    # With transformers comes all of moe_hf.public; a module of its own that was half imported then would be missing.
    guilty = []
    for path, tree in _trees():
        room = path.relative_to(PACKAGE).parts[0]
        roots = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
        roots |= {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
        if room in ("base", "ops") and any(root.split(".")[0] == "transformers" for root in roots):
            guilty.append(str(path))
    assert guilty == []
    for room in ("config", "layers", "models"):
        imports = ast.parse((PACKAGE / room / "__init__.py").read_text()).body[1:]
        assert ast.unparse(imports[0]) == "import transformers", room


def test_rooms_are_not_empty():
    rooms = [path.parent for path in SOURCES if path.name == "__init__.py" and path.parent != PACKAGE]
    empty = [room for room in rooms if len(list(room.rglob("*.py"))) < 2]
    assert empty == []


def test_the_project_speaks_of_itself_only():
    texts = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *(ROOT / "docs").rglob("*.md")]
    texts += sorted((ROOT / "configs").glob("*.yaml"))
    machine_path = re.compile(r"(?<![\w.])/(work|root|home|tmp)/\w")
    guilty = [str(path) for path in texts if machine_path.search(path.read_text(encoding="utf-8"))]
    assert guilty == []
