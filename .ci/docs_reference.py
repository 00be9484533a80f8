"""The API reference of the site: one page for each room of the package, made of its docstrings."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCTEST = re.compile(r"^(>>> .*(?:\n.+)*)", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """The pages that mkdocs found, and those of the reference."""
    index = ["# API reference", ""]
    for room in sorted(path.parent for path in (ROOT / "moe_hf").rglob("__init__.py")):
        modules = sorted(path for path in room.glob("*.py") if not path.stem.startswith("_"))
        name = ".".join(room.relative_to(ROOT).parts)
        if modules:
            text = [f"# {name}", *(f"::: {name}.{path.stem}" for path in modules)]
            files.append(File.generated(config, f"reference/{name}.md", content="\n\n".join(text)))
            index.append(f"- [{name}]({name}.md): {', '.join(path.stem for path in modules)}")
    files.append(File.generated(config, "reference/index.md", content="\n".join(index)))
    return files


class HouseDocstrings(griffe.Extension):
    """Reads docstrings as this package writes them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence doctests: Markdown would take their brackets for links."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\1\n```", obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Give the fields of configurations and settings their types and defaults."""
        modules = [pkg]
        for module in modules:
            modules += module.modules.values()
            for cls in module.classes.values():
                for section in cls.docstring.parsed if cls.docstring else ():
                    if section.kind is griffe.DocstringSectionKind.parameters:
                        for field in section.value:
                            self._complete(field, cls.attributes.get(field.name))

    def _complete(self, field: griffe.DocstringParameter, attribute: griffe.Attribute | None) -> None:
        if attribute is not None:
            field.annotation = field.annotation or attribute.annotation
            field.value = field.value or (attribute.value and str(attribute.value))
