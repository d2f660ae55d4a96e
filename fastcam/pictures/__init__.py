"""Reads and writes picture files; writing is atomic, through a temporary file."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcam.errors import FastcamError

Picture = NDArray[np.uint8]  # (H, W, 3), RGB


def read(path: Path) -> Picture:
    """Reads a picture, (H, W, 3), RGB, rotated upright by its EXIF orientation.

    Raises:
        FastcamError: if the file does not exist or is not a complete picture.
    """
    import cv2

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FastcamError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise FastcamError(f"{path}: expected a picture, got a folder") from None
    except OSError as error:
        raise FastcamError(f"{path}: {error.strerror}") from None
    if not data:
        raise FastcamError(f"{path}: the file is empty")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # larger than OpenCV's limit of 2^30 pixels
        picture = None
    if picture is None:
        raise FastcamError(f"{path}: not a picture that OpenCV can read, or truncated")
    return picture  # type: ignore[return-value]  # uint8 by the flag


def write(path: Path, picture: Picture) -> None:
    """Writes (H, W, 3), RGB, in the format given by the path's suffix."""
    import cv2

    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, picture[..., ::-1])[1].tobytes())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path and renames it to ``path`` if the block succeeds."""
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
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
