"""Errors that the user can fix; each message is one line and says how."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any, Final


class FastcamError(Exception):
    """A file, clip, model or device that cannot be used."""

    exit_code = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details
        """Facts for programs, such as the counts of a damaged clip."""


class UsageError(FastcamError):
    """An unknown name or an invalid argument."""

    exit_code = 2


class ArgumentError(ValueError):
    """An argument that does not fit the model, the images or the other arguments."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        """Its name, or several names separated by ", "."""
        self.problem = problem
        """The rest of the message: the value received, the value expected, and the remedy."""

    def __str__(self) -> str:
        return f"{self.argument}: {self.problem}"


def check_positive(**numbers: int | None) -> None:
    """Raises ArgumentError if one of the arguments is below 1; None stands for a default."""
    for argument, number in numbers.items():
        if number is not None and number < 1:
            raise ArgumentError(argument, f"got {number}, expected at least 1")


def near(name: str, names: Iterable[str]) -> str:
    """The closest names to ``name`` as a message suffix, "; near names: a, b", or ""."""
    wanted = name.casefold()
    known = {each.casefold(): each for each in names}
    alike = sorted((each for each in known if wanted in each), key=len)
    alike = alike[:5] or difflib.get_close_matches(wanted, known, n=5)
    chosen = [known[each] for each in alike]
    return f"; near names: {', '.join(chosen)}" if chosen else ""


def first_line(error: BaseException) -> str:
    """The first line of another library's error message."""
    return str(error).strip().partition("\n")[0]


KEPT: Final = "finished output is kept"


class Interrupted(KeyboardInterrupt):
    """A signal that asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        self.kept = KEPT
        """What the user is told about the output."""
        self.details: dict[str, Any] = {}
        """As of :class:`FastcamError`."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """The command line's handler for signals: raises :class:`Interrupted`, once.

    Signals that follow do not interrupt what the first one leads to.
    """
    for each in ENDING:
        if signal.getsignal(each) is interrupt:
            signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a program to end; Windows has no SIGHUP."""
