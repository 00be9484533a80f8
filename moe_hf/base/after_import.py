"""Does something once a package has been imported, without importing it."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def after_import(package: str, action: Callable[[], Any]) -> None:
    """Call `action` as soon as the top-level package is imported: now, if it is already.

    Whoever imports the package sees it only after the action; an error of the action is the import's.
    """
    if package in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watcher(package, action))


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds one package as the other finders would, and has its loader call the action at the end of its execution.

    It stays until then: many a library asks whether a package is there long before anybody imports it.
    """

    def __init__(self, package: str, action: Callable[[], Any]) -> None:
        self._package = package
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._package:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenCall(spec.loader, self._act)
        return spec

    def _act(self) -> None:
        self._action()
        # Once it has succeeded. Whoever replaces the list of finders may have left this one out.
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]


class _ThenCall(importlib.abc.Loader):
    """A loader that hands everything on, and calls the action after the module has been executed."""

    def __init__(self, loader: importlib.abc.Loader, action: Callable[[], Any]) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # What reads the package's files later asks the loader that it had anyway.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._action()
