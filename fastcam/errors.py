"""Errors that the user can fix; each message is one line that says how."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastcamError(Exception):
    """A file, clip, model or device that cannot be used."""

    exit_code = 1


class UsageError(FastcamError):
    """An unknown name or an invalid argument."""

    exit_code = 2


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
