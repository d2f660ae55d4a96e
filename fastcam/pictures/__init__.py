"""Pictures on disk: read whole or not at all, written under a temporary name and renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcam.errors import FastcamError

Picture = NDArray[np.uint8]  # (H, W, 3), RGB


def read(path: Path) -> Picture:
    """The picture (H, W, 3), RGB, upright as its EXIF entry says.

    Raises:
        FastcamError: there is no such file, or it is not a whole picture.
    """
    import cv2

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FastcamError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise FastcamError(f"{path}: a folder; name the pictures in it") from None
    except OSError as error:
        raise FastcamError(f"{path}: {error.strerror}") from None
    if not data:
        raise FastcamError(f"{path}: the file is empty")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # larger than OpenCV's limit of 2^30 pixels
        picture = None
    if picture is None:
        raise FastcamError(f"{path}: not a picture that OpenCV can read, or cut short")
    return picture  # type: ignore[return-value]  # uint8 by the flag


def write(path: Path, picture: Picture) -> None:
    """Writes (H, W, 3), RGB, in the format of the path's suffix."""
    import cv2

    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, picture[..., ::-1])[1].tobytes())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends without an error."""
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # it has been renamed, or could not be made
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``, with its suffix."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def cannot_write(path: Path, error: Exception, where: str = "") -> FastcamError:
    """The failure to raise where ``error`` came up while ``path`` was written."""
    reason = getattr(error, "strerror", None) or error
    return FastcamError(f"{path}: cannot be written{where}: {reason}")
