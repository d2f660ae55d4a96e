"""Another library's functions and methods, replaced in place and put back.

Classes and functions stay the very objects that they are: what was imported, subclassed, pickled or
instantiated before keeps working, and takes the new code too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from types import FunctionType
from typing import Any

Replacement = Callable[..., Any]


class Takeover:
    """What was replaced in one library; :meth:`undo` puts all of it back."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def method(self, owner: type, name: str, make: Callable[[Replacement], Replacement]) -> None:
        """Replaces a method of a class by what ``make`` makes of the present one.

        Args:
            owner: the class; where it inherits the method, it gets one of its own.
            make: gets the present function, to call where fastcam does not serve, and gives the new
                one, which takes ``self`` first. Signature and documentation stay the present one's.
        """
        present = getattr(owner, name)
        made = make(present)

        @functools.wraps(present)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return made(*args, **kwargs)

        static = isinstance(vars(owner).get(name), staticmethod)
        self.attribute(owner, name, staticmethod(replacement) if static else replacement)

    def attribute(self, owner: type, name: str, value: object) -> None:
        """Sets an attribute of a class."""
        if name in vars(owner):
            self._undo.callback(setattr, owner, name, vars(owner)[name])
        else:
            self._undo.callback(delattr, owner, name)
        setattr(owner, name, value)

    def function(self, function: Any, make: Callable[[Replacement], Replacement]) -> None:
        """Replaces what a module's function does; the function object stays.

        Args:
            function: one without a closure.
            make: as for :meth:`method`, without ``self``.
        """
        present = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        present.__kwdefaults__ = function.__kwdefaults__
        signature = inspect.signature(function)
        function.__code__ = _call_replacement.__code__.replace(co_name=function.__code__.co_name)
        function.__defaults__ = None
        function.__kwdefaults__ = {"_replacement": make(present)}
        function.__signature__ = signature

        def put_back() -> None:
            function.__code__ = present.__code__
            function.__defaults__ = present.__defaults__
            function.__kwdefaults__ = present.__kwdefaults__
            del function.__signature__

        self._undo.callback(put_back)

    def on_undo(self, action: Callable[[], object]) -> None:
        """What :meth:`undo` has to do besides."""
        self._undo.callback(action)

    def undo(self) -> None:
        """Puts everything back, the last replacement first."""
        self._undo.close()


def _call_replacement(*args: Any, _replacement: Replacement, **kwargs: Any) -> Any:
    return _replacement(*args, **kwargs)
