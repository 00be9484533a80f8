"""The rooms stay small: sizes of files and functions, depth of imports, a test file for each module."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "moe_hf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in SOURCES}


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of the package that a module imports anywhere in its text."""
    nodes = [node for node in ast.walk(TREES[FILES[module]]) if isinstance(node, ast.ImportFrom) and node.module]
    named = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} & FILES.keys()
    rooms = {n.module for n in nodes if any(f"{n.module}.{alias.name}" not in FILES for alias in n.names)}
    return frozenset((named | rooms & FILES.keys()) - {module})


@cache
def chain(module: str) -> tuple[str, ...]:
    """The longest chain of imports that begins with the module."""
    return (module, *max((chain(other) for other in imported(module)), key=len, default=()))


def test_no_file_is_longer_than_400_lines() -> None:
    assert [str(path) for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_of_a_hundred_functions_one_at_most_is_longer_than_50_lines() -> None:
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    lengths = [
        (n.end_lineno or 0) - n.lineno + 1 for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert sum(length > 50 for length in lengths) <= len(lengths) // 100


def test_no_chain_of_imports_is_longer_than_14_modules() -> None:
    longest = max((chain(module) for module in FILES), key=len)
    assert len(longest) <= 14, " -> ".join(longest)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.stem != "__init__"], ids=name_of)
def test_each_module_has_a_test_file_at_the_same_path(path: Path) -> None:
    assert (ROOT / "tests" / path.relative_to(PACKAGE).parent / f"test_{path.name}").exists()
