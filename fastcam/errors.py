"""Failures that a person can do something about; the message says what, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastcamError(Exception):
    """A file, a clip or weights that cannot be used."""

    exit_code = 1


class UsageError(FastcamError):
    """A name or a number that nothing answers to."""

    exit_code = 2


def near(name: str, names: Iterable[str]) -> str:
    """The names most like ``name`` as the end of a message: "; near names: a, b", or nothing."""
    wanted = name.casefold()
    known = {each.casefold(): each for each in names}
    alike = sorted((each for each in known if wanted in each), key=len)
    alike = alike[:5] or difflib.get_close_matches(wanted, known, n=5)
    chosen = [known[each] for each in alike]
    return f"; near names: {', '.join(chosen)}" if chosen else ""


def first_line(error: BaseException) -> str:
    """What another library said, as far as it fits into one line."""
    return str(error).strip().partition("\n")[0]
