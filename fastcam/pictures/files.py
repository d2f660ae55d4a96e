"""Writes files whole, through a temporary file, and recognizes files under other names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastcam.errors import FastcamError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new, empty temporary file and renames it to ``path`` if the block succeeds.

    The mode of the file follows the umask, also if the block writes it with another mode.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # already renamed, or never created
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """A hidden path in the same folder, with the same suffix; a new one at every call."""
    return path.with_name(f".fastcam-{secrets.token_hex(8)}.part{path.suffix}")


def cannot_write(path: Path, error: Exception, where: str = "") -> FastcamError:
    """The error to raise if writing ``path`` failed with ``error``."""
    reason = getattr(error, "strerror", None) or error
    return FastcamError(f"{path}: cannot be written{where}: {reason}")


def same_file(path: Path, others: Iterable[Path]) -> Path | None:
    """The first of ``others`` that is the file at ``path``, also by way of links; else None."""
    for other in others:
        with suppress(OSError):  # one of them does not exist
            if os.path.samefile(path, other):
                return other
    return None
