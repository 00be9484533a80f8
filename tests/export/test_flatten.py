"""Modules become sibling files: same text, other imports, and no row, function or import that nothing uses."""

import ast
import sys
from pathlib import Path

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.export import flatten as flattening
from moe_hf.export.flatten import flatten

SOURCES = {
    "moe_hf.config.small": '''"""What is chosen."""

from typing import Any

from moe_hf.base.numbers import SIZE

_Field = dict[str, Any]


class SmallConfig:
    """Chosen."""

    size = SIZE
''',
    "moe_hf.models.small": '''"""The model."""

from typing import Any

from moe_hf.config.small import SmallConfig
from moe_hf.layers.parts import PARTS, count_of


class Small:
    """Made of parts."""

    config_class: Any = SmallConfig

    def parts(self) -> list[str]:
        # Imported late.
        from moe_hf.layers.late import named

        return [named(part) for part in PARTS] + [str(count_of())]
''',
    "moe_hf.layers.parts": '''"""The table of parts, ≤ 3."""

import math

from moe_hf.base.numbers import (
    SIZE,
    TWICE,
)
from moe_hf.layers.first import First
from moe_hf.layers.second import Second

# How many the second has.
MANY = 7
"""More than few."""


@staticmethod
def _second(size: int = TWICE) -> Second:
    """By a function."""
    return Second(math.floor(size) + MANY)


# Of both.
def _shared() -> int:
    return 1


PARTS: dict[str, object] = {"first": First, "second": _second, "both": _shared}


def count_of() -> int:
    """Of parts."""
    return len(PARTS) + SIZE + _shared()
''',
    "moe_hf.layers.late": '"""Names."""\n\n\ndef named(part: str) -> str:\n    return part.title()\n',
    "moe_hf.layers.first": '"""First."""\n\n\nclass First:\n    pass\n',
    "moe_hf.layers.second": '"""Second."""\n\n\nclass Second(int):\n    pass\n',
    "moe_hf.base.numbers": '"""Numbers."""\n\nSIZE = 2\nTWICE = 4\n',
}
PARTS = ("moe_hf.config.small", "moe_hf.models.small")
TAIL = "from moe_hf.layers.late import named\n\nNAME = named(Small.__name__)\n"


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A small package in place of the real one."""
    texts = dict(SOURCES)
    monkeypatch.setattr(flattening, "_source_of", texts.__getitem__)
    return texts


def test_files_compute_what_the_modules_do(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = flatten("modeling_small", PARTS, TAIL)
    assert [*files] == [
        *["base_numbers.py", "layers_first.py", "layers_late.py", "layers_parts.py", "layers_second.py"],
        "modeling_small.py",
    ]
    (tmp_path / "flat").mkdir()
    for name, text in files.items():
        (tmp_path / "flat" / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    from flat import modeling_small  # type: ignore[import-not-found]

    assert modeling_small.Small().parts() == ["First", "Second", "Both", "6"]
    assert modeling_small.NAME == "Small"
    assert modeling_small.SmallConfig.__module__ == modeling_small.Small.__module__ == "flat.modeling_small"
    assert "moe_hf" not in {name.partition(".")[0] for name in sys.modules["flat.layers_parts"].__dict__}


def test_text_stays_but_for_the_imports(sources: dict[str, str]) -> None:
    files = flatten("modeling_small", PARTS)
    notice, text = files["layers_late.py"].split("\n", 2)[:2], files["layers_late.py"].split("\n", 2)[2]
    assert text == SOURCES["moe_hf.layers.late"]
    assert "moe_hf/layers/late.py" in notice[0]
    assert notice[1].endswith("Changed: imports.")
    kept = files["layers_parts.py"].split("\n", 2)[2]
    assert kept == SOURCES["moe_hf.layers.parts"].replace("moe_hf.base.", ".base_").replace(
        "moe_hf.layers.", ".layers_"
    )


def test_rows_leave_with_all_that_only_they_used(sources: dict[str, str]) -> None:
    files = flatten("modeling_small", PARTS, tables={"moe_hf.layers.parts": {"PARTS": ("both",)}})
    assert "layers_first.py" not in files
    assert "layers_second.py" not in files
    text = files["layers_parts.py"]
    assert "rows of tables" in text.splitlines()[1]
    # What was left, and the comment above what stays.
    assert (
        text.split('"""The table')[1]
        == ''' of parts, ≤ 3."""

from .base_numbers import SIZE


# Of both.
def _shared() -> int:
    return 1


PARTS: dict[str, object] = {"both": _shared}


def count_of() -> int:
    """Of parts."""
    return len(PARTS) + SIZE + _shared()
'''
    )


@pytest.mark.parametrize(
    ("keep", "table"),
    [
        (("first",), '{"first": First}'),
        (("first", "both"), '{"first": First, "both": _shared}'),
        (("second",), '{"second": _second}'),
        ((), "{}"),
        (("first", "second", "both"), '{"first": First, "second": _second, "both": _shared}'),
    ],
)
def test_any_rows_may_stay(keep: tuple[str, ...], table: str, sources: dict[str, str]) -> None:
    text = flatten("modeling_small", PARTS, tables={"moe_hf.layers.parts": {"PARTS": keep}})["layers_parts.py"]
    ast.parse(text)
    assert f"PARTS: dict[str, object] = {table}\n" in text


def test_what_another_module_imports_stays(sources: dict[str, str]) -> None:
    sources["moe_hf.layers.late"] += "\n\nfrom moe_hf.layers.parts import MANY\n"
    text = flatten("modeling_small", PARTS, tables={"moe_hf.layers.parts": {"PARTS": ()}})["layers_parts.py"]
    assert 'MANY = 7\n"""More than few."""\n' in text
    assert "_second" not in text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("import moe_hf.base.numbers", "moe_hf.layers.late:1: write the import as `from moe_hf.a.b import c`"),
        ("from . import numbers", "moe_hf.layers.late:1: write the import as"),
        ("from __future__ import annotations", "moe_hf.layers.late:1: write the import as"),
        ("from moe_hf import base", "moe_hf.layers.late:1: write the import as"),
    ],
)
def test_imports_of_other_forms_are_refused(line: str, text: str, sources: dict[str, str]) -> None:
    sources["moe_hf.layers.late"] = f"{line}\n"
    with pytest.raises(ConfigError, match=text):
        flatten("modeling_small", PARTS)


def test_names_that_would_fall_together_are_refused(sources: dict[str, str]) -> None:
    sources["moe_hf.layers.late"] += "\nfrom moe_hf.layers.base_numbers import ONE\n"
    sources["moe_hf.layers.base_numbers"] = "from moe_hf.layers_base.numbers import ONE\n"
    sources["moe_hf.layers_base.numbers"] = "ONE = 1\n"
    with pytest.raises(ConfigError, match="would both become layers_base_numbers"):
        flatten("modeling_small", PARTS)
    del sources["moe_hf.layers.base_numbers"], sources["moe_hf.layers_base.numbers"]
    sources["moe_hf.layers.late"] = SOURCES["moe_hf.layers.late"]
    sources["moe_hf.models.small"] += "\n\n_Field = 3\n"
    with pytest.raises(ConfigError, match="_Field means two things"):
        flatten("modeling_small", PARTS)


def test_a_table_that_is_not_there_is_named(sources: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"layers\.parts has no table PIECES"):
        flatten("modeling_small", PARTS, tables={"moe_hf.layers.parts": {"PIECES": ()}})
    with pytest.raises(ConfigError, match=r"layers\.parts has no table MANY"):
        flatten("modeling_small", PARTS, tables={"moe_hf.layers.parts": {"MANY": ()}})
