"""Which of a library's modules are a known release's, and whether they stay as they were.

A take-over stands for more than the function that it replaces: for all that this function would
have called and fastcam does not. It names the modules where that lies. They have to be what fastcam
has been compared with, and to stay so: a script may carry an edited copy of the library, or put
functions of its own into it.
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
    """By module, the fingerprints, and the releases that have each."""
    table: dict[str, dict[str, list[str]]] = json.loads(TABLE.read_text())
    return table


def fingerprint(module: ModuleType) -> str:
    """A hash of a module's functions and classes, as they are in memory.

    Of the source text of its own, whatever its line ends (one that cannot be read is like no
    other), and of the names of those that it has from the library's other modules.
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
    """Whether modules of a library stay as they were.

    Args:
        modules: by their full names.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = tuple(modules)
        self._kept: list[_Kept] = []

    def arm(self) -> None:
        """What is there now is what has to be there later; the first time counts."""
        self._kept = self._kept or [
            _Kept.of(vars(place), shown)
            for name in self._modules
            for place, shown in _places(importlib.import_module(name))
        ]

    def changed(self) -> str | None:
        """What has been changed since; None if nothing has."""
        return next(filter(None, (kept.changed() for kept in self._kept)), None)


@dataclass
class _Kept:
    """The code in a module or class: each call looks here, in a microsecond."""

    now: Mapping[str, Any]
    names: tuple[str, ...]
    values: tuple[Any, ...]
    size: int
    """How many names there were of all kinds."""
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
    """Whether a name of a module or class is code."""
    special = name.startswith("__") and name.endswith("__")
    if special and name not in ("__call__", "__init__"):
        return False
    code = isinstance(value, (FunctionType, BuiltinFunctionType, type, ModuleType))
    return code or _is_code(value)
