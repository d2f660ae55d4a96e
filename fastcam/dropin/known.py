"""Checks that a library's modules come from a known release and have not been changed since.

A replacement also stands in for the functions that the original would have called. Each takeover
names their modules. They must match a release that fastcam has been compared with, and stay that
way, because a script may contain an edited copy of the library or monkeypatch it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

TABLE = Path(__file__).with_name("known.json")


@functools.cache
def known() -> dict[str, dict[str, list[str]]]:
    """By module and fingerprint, the releases that have it."""
    table: dict[str, dict[str, list[str]]] = json.loads(TABLE.read_text())
    return table


def fingerprint(module: ModuleType) -> str:
    """A hash of a module's functions and classes, as they are in memory.

    Functions and classes that the module defines count with their source text, regardless of line
    ends (empty if it cannot be read); those imported from the library's other modules with their
    names.
    """
    library = module.__name__.partition(".")[0]
    texts = []
    for name, value in sorted(vars(module).items()):
        if not isinstance(value, (FunctionType, type)):
            continue
        home = str(value.__module__)
        if home == module.__name__:
            texts.append(f"{name}\n{_source(value)}")
        elif home.partition(".")[0] == library:
            texts.append(f"{name} is {home}.{value.__qualname__}")
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _source(value: Any) -> str:
    """The text of a function, or of a class's methods."""
    if isinstance(value, type):
        hung = sorted(vars(value).items())
        return "\n".join(f"{name}\n{_source(each)}" for name, each in hung if _is_code(each))
    if isinstance(value, property):
        return "\n".join(_source(each) for each in (value.fget, value.fset) if each is not None)
    try:
        lines = inspect.getsource(getattr(value, "__func__", value)).splitlines()
    except (OSError, TypeError):
        return ""
    return "\n".join(line.rstrip() for line in lines)


def _is_code(value: Any) -> bool:
    return isinstance(value, (FunctionType, staticmethod, classmethod, property))


class Guard:
    """Detects changes to modules of a library.

    Args:
        modules: full names.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = tuple(modules)
        self._kept: list[_Kept] = []

    def arm(self) -> None:
        """Saves the present state as the expected one; only the first call has an effect."""
        self._kept = self._kept or [
            _Kept.of(vars(place), shown)
            for name in self._modules
            for place, shown in _places(importlib.import_module(name))
        ]

    def changed(self) -> str | None:
        """The first change since :meth:`arm`, in words; None if there is none."""
        return next(filter(None, (kept.changed() for kept in self._kept)), None)


@dataclass
class _Kept:
    """The saved code of a module or class; the check at each call takes about a microsecond."""

    now: Mapping[str, Any]
    names: tuple[str, ...]
    values: tuple[Any, ...]
    size: int
    """The number of names, whether they are code or not."""
    shown: str

    @classmethod
    def of(cls, now: Mapping[str, Any], shown: str) -> _Kept:
        code = {name: value for name, value in now.items() if _counts(name, value)}
        return cls(now, tuple(code), tuple(code.values()), len(now), shown)

    def changed(self) -> str | None:
        if not all(map(operator.is_, map(self.now.get, self.names), self.values)):
            pairs = zip(self.names, self.values, strict=True)
            name = next(name for name, value in pairs if self.now.get(name) is not value)
            return f"{self.shown}.{name} has been changed"
        if len(self.now) != self.size:
            for name, value in list(self.now.items()):
                if name not in self.names and _counts(name, value):
                    return f"{self.shown}.{name} has been added"
        return None


def _places(module: ModuleType) -> Iterator[tuple[Any, str]]:
    yield module, module.__name__
    for value in list(vars(module).values()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield value, value.__name__


def _counts(name: str, value: Any) -> bool:
    """Whether a name in a module or class refers to code that is watched."""
    special = name.startswith("__") and name.endswith("__")
    if special and name not in ("__call__", "__init__"):
        return False
    code = isinstance(value, (FunctionType, BuiltinFunctionType, type, ModuleType))
    return code or _is_code(value)
