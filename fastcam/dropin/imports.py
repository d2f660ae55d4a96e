"""Runs an action right after a module's first import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_waiting: dict[str, Callable[[], object]] = {}


def when_imported(name: str, action: Callable[[], object]) -> None:
    """Calls ``action`` now if the module is imported, else right after its import."""
    if name in sys.modules:
        action()
        return
    _waiting[name] = action
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def no_longer(name: str) -> None:
    """Drops the action that waits for the import of a module."""
    _waiting.pop(name, None)


class _Finder(MetaPathFinder):
    """Returns what the other finders find, with a loader that runs the action after the import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        action = _waiting.pop(module.__name__, None)
        if action is not None:
            action()


_finder = _Finder()
