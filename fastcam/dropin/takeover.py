"""Replaces another library's functions and methods in place, and restores them.

Classes and functions keep their identity, so anything imported, subclassed, pickled or instantiated
earlier keeps working and uses the new code too. The library's own code runs instead if the replaced
modules do not match a known release, or have been changed since.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from fastcam.dropin.calls import counted
from fastcam.dropin.known import Guard, fingerprint, known

Replacement = Callable[..., Any]


class Takeover:
    """The replacements in one library; :meth:`undo` reverts them.

    Args:
        library: the name of its package.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._undo: list[Callable[[], object]] = []
        self._fingerprints: dict[str, str] = {}
        self._guards: dict[frozenset[str], Guard] = {}
        self._unknown: dict[str, list[str]] = {}  # by module, the names that are not replaced

    def method(
        self, owner: type, name: str, make: Callable[[Replacement], Replacement], *modules: str
    ) -> None:
        """Replaces a method of a class.

        Args:
            owner: the class; an inherited method is overridden in this class.
            make: takes the present function, to call for cases that fastcam does not serve, and
                returns the new one, whose first argument is ``self``. The signature and docstring
                are kept.
            modules: the modules besides that of the class whose code the new function replaces.
        """
        guard = self.guard(f"{owner.__name__}.{name}", owner.__module__, *modules)
        if guard is None:
            return
        present = getattr(owner, name)

        def shown(args: tuple[Any, ...]) -> str:
            of_object = args and isinstance(args[0], owner)
            return type(args[0]).__name__ if of_object else f"{owner.__name__}.{name}"

        made = self._guarded(make(present), present, guard, shown)
        replacement = functools.wraps(present)(made)
        static = isinstance(vars(owner).get(name), staticmethod)
        self.attribute(owner, name, staticmethod(replacement) if static else replacement)

    def function(
        self, function: Any, make: Callable[[Replacement], Replacement], *modules: str
    ) -> None:
        """Replaces the code of a module's function; the function object stays the same.

        Args:
            function: a function without a closure.
            make: as for :meth:`method`, without ``self``.
            modules: the modules besides that of the function whose code the new function replaces.
        """
        guard = self.guard(function.__name__, function.__module__, *modules)
        if guard is None:
            return
        present = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        present.__kwdefaults__ = function.__kwdefaults__
        signature = inspect.signature(function)

        def put_back() -> None:
            function.__code__ = present.__code__
            function.__defaults__ = present.__defaults__
            function.__kwdefaults__ = present.__kwdefaults__
            vars(function).pop("__signature__", None)

        self.on_undo(put_back)
        name = function.__name__
        made = self._guarded(make(present), present, guard, lambda args: name)
        function.__kwdefaults__ = {"_replacement": made}
        function.__defaults__ = None
        function.__signature__ = signature
        function.__code__ = _call_replacement.__code__.replace(co_name=function.__code__.co_name)

    def attribute(self, owner: type, name: str, value: object) -> None:
        """Sets an attribute of a class."""
        if name in vars(owner):
            self.on_undo(functools.partial(setattr, owner, name, vars(owner)[name]))
        else:
            self.on_undo(functools.partial(_remove, owner, name))
        setattr(owner, name, value)

    def guard(self, what: str, *modules: str) -> Guard | None:
        """A guard of modules of the library, or None if one does not match a known release.

        Args:
            what: the name of the replaced function, for the warning.
            modules: full names.
        """
        for name in modules:
            if name not in self._fingerprints:
                self._fingerprints[name] = fingerprint(importlib.import_module(name))
            if self._fingerprints[name] not in known().get(name, {}):
                self._unknown.setdefault(name, []).append(what)
                return None
        key = frozenset(modules)
        return self._guards.setdefault(key, Guard(sorted(key)))

    def on_undo(self, action: Callable[[], object]) -> None:
        """Adds an action to :meth:`undo`; an interrupt may cause it to run twice."""
        self._undo.append(action)

    def finish(self) -> None:
        """Starts to watch for changes by the user.

        Warns:
            UserWarning: if a module does not match a known release; lists the names not replaced.
        """
        for guard in self._guards.values():
            guard.arm()
        if not self._unknown:
            return
        releases = {each for name in known() for each in _releases(name, self.library)}
        stay = [f"{', '.join(whats)} ({name})" for name, whats in self._unknown.items()]
        reason = (
            f"{self.library}{_version(self.library)} is not one of the releases that fastcam knows "
            f"({', '.join(sorted(releases))}), or has been changed"
            if releases
            else f"fastcam knows no release of {self.library}"
        )
        warnings.warn(f"fastcam.dropin: {reason}; not replaced: {'; '.join(stay)}", stacklevel=2)
        self._unknown = {}

    def undo(self) -> None:
        """Restores everything, the last replacement first."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _guarded(
        self,
        made: Replacement,
        present: Replacement,
        guard: Guard,
        shown: Callable[[tuple[Any, ...]], str],
    ) -> Replacement:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            changed = guard.changed()
            if changed is None:
                return made(*args, **kwargs)
            with counted(f"{self.library}.{shown(args)}") as call:
                call.leave_to(self.library, changed)
                return present(*args, **kwargs)

        return replacement


def _remove(owner: type, name: str) -> None:
    if name in vars(owner):
        delattr(owner, name)


def _releases(module: str, library: str) -> Iterable[str]:
    if module.partition(".")[0] != library:
        return ()
    return (release for each in known()[module].values() for release in each)


def _version(library: str) -> str:
    """The installed release after a space, or "" if no package provides the library."""
    names = importlib.metadata.packages_distributions().get(library, [])
    return f" {importlib.metadata.version(names[0])}" if names else ""


def _call_replacement(*args: Any, _replacement: Replacement, **kwargs: Any) -> Any:
    return _replacement(*args, **kwargs)
