"""Writes a part of this package as sibling files without folders, which transformers takes for a model's own code.

transformers runs a model's own code from the files beside its weights, and follows imports of the form
`from .name import ...` alone. So every module becomes one file under a flat name and keeps its text; changed are the
imports, the tables whose other rows nobody asked for, and what only those rows used.
"""

import ast
import copy
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from moe_hf.base.errors import ConfigError
from moe_hf.version import __version__

_PACKAGE = "moe_hf"

Tables = Mapping[str, Mapping[str, Collection[str]]]
"""Module -> table in it, a dict written out there -> names of the rows that stay."""


class FlatModule(NamedTuple):
    """A module of this package whose text may have been cut.

    Attributes:
        name: its dotted name.
        text: its source.
        is_cut: whether rows of a table are left out.
    """

    name: str
    text: str
    is_cut: bool = False

    @property
    def path(self) -> str:
        """Its file, seen from where the package lies."""
        spec = importlib.util.find_spec(self.name)
        is_room = spec is not None and spec.submodule_search_locations is not None
        return self.name.replace(".", "/") + ("/__init__.py" if is_room else ".py")


def flatten(entry: str, parts: Sequence[str], tail: str = "", tables: Tables | None = None) -> dict[str, str]:
    """The files that a folder needs to import what some modules define: name -> text.

    Args:
        entry: name of the module that all parts become, one below the other: a class and its configuration, in one
            module, are loaded as one copy.
        parts: modules of this package, a module before those that import it.
        tail: code that ends the entry, with imports as this package writes them.
        tables: rows to keep.

    Raises:
        ConfigError: a module imports in another form than `from moe_hf.a.b import c`, two would get one name, or a
            table is not there.
    """
    tables = tables or {}
    # What another module asks for stays, whoever else used it.
    wanted: dict[str, set[str]] = {}
    for module in _closure(parts, tail, {}, {}).values():
        for node in _own_imports(module.text, module.name):
            wanted.setdefault(cast(str, node.module), set()).update(alias.name for alias in node.names)
    modules = _closure(parts, tail, tables, wanted)
    names = dict.fromkeys(parts, entry)
    for name in sorted(modules.keys() - names.keys()):
        names[name] = name.removeprefix(f"{_PACKAGE}.").replace(".", "_")
        if list(names.values()).count(names[name]) > 1:
            raise ConfigError(f"{name} and another module would both become {names[name]}.py; rename one of them")
    files = {f"{entry}.py": _entry_text([modules[part] for part in parts], names, tail)}
    for name in names.keys() - {*parts}:
        text = _with_flat_imports(modules[name].text, names, own="")
        files[f"{names[name]}.py"] = f"{_notice([modules[name]])}\n{text}"
    return dict(sorted(files.items()))


def _closure(
    parts: Sequence[str], tail: str, tables: Tables, wanted: Mapping[str, Collection[str]]
) -> dict[str, FlatModule]:
    """The parts and all that they import, directly or not, also inside functions."""
    found: dict[str, FlatModule] = {}
    open_names = [*parts, *(cast(str, node.module) for node in _own_imports(tail, "the tail"))]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        text, rows = _source_of(name), tables.get(name)
        if rows is not None:
            text = _without_rows(text, name, rows, wanted.get(name, ()))
        found[name] = FlatModule(name, text, rows is not None)
        open_names += [cast(str, node.module) for node in _own_imports(text, name)]
    return found


def _source_of(name: str) -> str:
    spec = importlib.util.find_spec(name)
    loader: Any = None if spec is None else spec.loader
    text = None if loader is None else loader.get_source(name)
    if text is None:
        raise ConfigError(f"the source of {name} is not installed; install moe_hf with its .py files")
    return str(text)


@lru_cache(maxsize=512)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _own_imports(text: str, name: str) -> list[ast.ImportFrom]:
    """The imports from this package, wherever they stand."""
    found = []
    for node in ast.walk(_parsed(text)):
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == _PACKAGE for alias in node.names):
            raise ConfigError(f"{name}:{node.lineno}: write the import as `from {_PACKAGE}.a.b import c`")
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level or (node.module or "") in (_PACKAGE, "__future__"):
            raise ConfigError(f"{name}:{node.lineno}: write the import as `from {_PACKAGE}.a.b import c`")
        if (node.module or "").startswith(f"{_PACKAGE}."):
            found.append(node)
    return found


def _with_flat_imports(text: str, names: Mapping[str, str], own: str) -> str:
    """The text with imports of sibling files; those of the module `own`, which holds the text, are left out."""
    edits = []
    for node in _own_imports(text, own):
        start, end = _span(text, node)
        target = names[cast(str, node.module)]
        if target == own:
            edits.append((start, _line_end(text, end), ""))
        else:
            head = re.compile(r"from\s+[\w.]+").match(text, start)
            assert head is not None
            edits.append((start, head.end(), f"from .{target}"))
    return _edited(text, edits)


def _entry_text(parts: Sequence[FlatModule], names: Mapping[str, str], tail: str) -> str:
    own, blocks = names[parts[0].name], []
    seen: dict[str, str] = {}
    for part in parts:
        tree = _parsed(part.text)
        for name, statement in _definitions(tree).items():
            if isinstance(statement, ast.ImportFrom) and names.get(statement.module or "") == own:
                continue
            meaning = _meaning(name, statement)
            if seen.setdefault(name, meaning) != meaning:
                raise ConfigError(f"{name} means two things in {' and '.join(part.name for part in parts)}; rename one")
        docstring = tree.body[0]
        body = part.text[_span(part.text, docstring)[1] :] if ast.get_docstring(tree) else part.text
        blocks.append(_with_flat_imports(body, names, own).strip("\n"))
    title = parts[-1].text[slice(*_span(parts[-1].text, _parsed(parts[-1].text).body[0]))]
    if tail:
        blocks.append(_with_flat_imports(tail, names, own).strip("\n"))
    return f"{_notice(parts)}\n{title}\n\n" + "\n\n\n".join(blocks) + "\n"


def _notice(modules: Sequence[FlatModule]) -> str:
    changes = ["imports"]
    if any(module.is_cut for module in modules):
        changes.append("rows of tables that this model has no use for")
    if len(modules) > 1:
        changes.append("two files made one, with the lines at the end added")
    return (
        f"# From {_PACKAGE} {__version__}: {' and '.join(module.path for module in modules)}\n"
        f"# Apache License 2.0, http://www.apache.org/licenses/LICENSE-2.0. Changed: {'; '.join(changes)}."
    )


def _without_rows(text: str, name: str, tables: Mapping[str, Collection[str]], wanted: Collection[str]) -> str:
    """A module without the rows of its tables that are not to stay, and without what nothing else in it uses then."""
    before = _definitions(_parsed(text))
    edits: list[tuple[int, int, str]] = []
    suspects: set[str] = set()
    for table, rows in tables.items():
        found = _table(before.get(table))
        if found is None:
            raise ConfigError(f"{name} has no table {table}, a dict that is written out")
        keep = [cast(ast.Constant, key).value in rows for key in found.keys]
        edits += _row_edits(text, found, keep)
        for value, stays in zip(found.values, keep, strict=True):
            suspects |= set() if stays else _names_in(value)
    text = _edited(text, edits)
    while suspects:
        tree = _parsed(text)
        used = set().union(*(_names_in(node) for node in tree.body), wanted)
        defined = _definitions(tree)
        unused = next((suspect for suspect in sorted(suspects) if suspect in defined and suspect not in used), None)
        if unused is None:
            break
        suspects = (suspects | _names_in(defined[unused])) - {unused}
        text = _without_definition(text, tree, defined[unused], unused)
    return text


def _table(statement: ast.stmt | None) -> ast.Dict | None:
    """The dict of `TABLE: Registry = Registry("kind", {...})`, or of `TABLE = {...}`."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return None
    found = next((node for node in ast.walk(statement.value) if isinstance(node, ast.Dict)), None)
    return found if found is not None and all(isinstance(key, ast.Constant) for key in found.keys) else None


def _row_edits(text: str, table: ast.Dict, keep: Sequence[bool]) -> Iterator[tuple[int, int, str]]:
    starts = [_span(text, cast(ast.expr, key))[0] for key in table.keys]
    ends = [_span(text, value)[1] for value in table.values]
    last = max((i for i, stays in enumerate(keep) if stays), default=None)
    if last is None:
        start, end = _span(text, table)
        yield start, end, "{}"
        return
    for i in range(last):
        if not keep[i]:
            yield starts[i], starts[i + 1], ""
    if ends[last] != ends[-1]:
        yield ends[last], ends[-1], ""


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a module's top level defines or imports, with the statement that does."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0]: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


def _meaning(name: str, statement: ast.stmt) -> str:
    """Equal for two imports of one thing, and for nothing else."""
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        return f"line {statement.lineno}: {ast.unparse(statement)}"
    found = next(alias for alias in statement.names if (alias.asname or alias.name).partition(".")[0] == name)
    return f"{getattr(statement, 'module', '')}: {ast.unparse(found)}"


def _names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def _without_definition(text: str, tree: ast.Module, node: ast.stmt, name: str) -> str:
    if isinstance(node, ast.Import | ast.ImportFrom) and len(node.names) > 1:
        rest = copy.copy(node)
        rest.names = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] != name]
        return _edited(text, [(*_span(text, node), ast.unparse(rest))])
    place = tree.body.index(node)
    # The comment above it goes too.
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    lines = text.splitlines(keepends=True)
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    after = tree.body[place + 1 :]
    # So does the text that describes an assigned name.
    if after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant):
        node = after[0]
    last = cast(int, node.end_lineno)
    is_import = isinstance(node, ast.Import | ast.ImportFrom)
    # A definition takes the empty lines above it along, an import one that would be left beside another.
    while lines[first - 2 : first - 1] == ["\n"] and (not is_import or lines[last : last + 1] == ["\n"]):
        first -= 1
    return "".join(lines[: first - 1] + lines[last:])


def _span(text: str, node: ast.stmt | ast.expr) -> tuple[int, int]:
    """Where a node begins and ends in the text."""
    lines = text.splitlines(keepends=True)

    def place(line: int, column: int) -> int:
        # The parser counts bytes of a line.
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    return place(node.lineno, node.col_offset), place(cast(int, node.end_lineno), cast(int, node.end_col_offset))


def _line_end(text: str, place: int) -> int:
    found = text.find("\n", place)
    return len(text) if found < 0 else found + 1


def _edited(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text
