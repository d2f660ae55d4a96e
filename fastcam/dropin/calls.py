"""Records which calls to another library fastcam served, and why it left others to the library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple


class Call(NamedTuple):
    """One kind of call."""

    name: str
    """As the user wrote it, such as "pytorch_grad_cam.GradCAM"."""
    served_by: str
    """"fastcam", or the library's own code."""
    why: str
    """How fastcam served the call, or why it did not."""


class Report:
    """The calls so far and their counts; prints as a table."""

    def __init__(self, calls: Counter[Call]) -> None:
        self.calls = dict(calls)

    def __str__(self) -> str:
        if not self.calls:
            return "fastcam.dropin: no call yet"
        rows = [
            (f"{count} x", call.name, call.served_by, call.why)
            for call, count in sorted(self.calls.items())
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        return "\n".join(lines)

    __repr__ = __str__


_calls: Counter[Call] = Counter()


def note(name: str, served_by: str, why: str) -> None:
    """Counts a call."""
    _calls[Call(name, served_by, why)] += 1


@dataclass
class Current:
    """A call in progress, and the note to make when it ends."""

    name: str
    served_by: str = "fastcam"
    why: str = ""

    def leave_to(self, library: str, why: str) -> None:
        """Marks the call, or a part of it, as run by the library's code; keeps the first reason."""
        if self.served_by != library:
            self.served_by, self.why = library, why


_current: ContextVar[Current | None] = ContextVar("current", default=None)


@contextmanager
def counted(name: str) -> Iterator[Current]:
    """Notes a call when it ends; nested calls belong to it and are not noted."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    current = Current(name)
    token = _current.set(current)
    try:
        yield current
    except BaseException as error:
        current.why = f"raised {type(error).__name__}"
        raise
    finally:
        _current.reset(token)
        note(current.name, current.served_by, current.why)


def report() -> Report:
    """The calls since the start or the last :func:`forget`."""
    return Report(_calls)


def forget() -> None:
    """Clears the counts."""
    _calls.clear()
