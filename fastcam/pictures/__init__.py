"""Reads and writes picture files; writing is atomic, through a temporary file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcam.errors import FastcamError
from fastcam.pictures import headers
from fastcam.pictures.files import cannot_write, replacing, same_file, temporary_name

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "can_write",
    "cannot_write",
    "data_of",
    "decoded",
    "encoded",
    "enough_memory",
    "read",
    "replacing",
    "same_file",
    "temporary_name",
    "write",
]

Picture = NDArray[np.uint8]  # (H, W, 3), RGB

MAX_PIXELS = 100_000_000
_HEAD = 16  # bytes that tell the format
_BYTES = 16  # per pixel, more than any format that OpenCV reads needs


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads a picture, (H, W, 3), RGB, rotated upright by its EXIF orientation.

    Args:
        path: a file in any format that OpenCV reads; other bit depths are converted to 8 bits.
        max_pixels: refuse larger pictures, by their header.

    Raises:
        FastcamError: if the file does not exist, is not a complete picture or is too large.
    """
    return decoded(data_of(path, max_pixels), path, max_pixels)


def decoded(data: bytes, name: Path | str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decodes a picture as :func:`read` does.

    Args:
        data: the bytes of a file.
        name: what errors call it.
        max_pixels: refuse larger pictures, by their header.
    """
    import cv2

    size = headers.extents(data)
    if size is None:
        raise FastcamError(_unreadable(name))
    if size[0] * size[1] > max_pixels:
        height, width = size
        raise FastcamError(
            f"{name}: {width}x{height} pixels are more than max-pixels ({max_pixels:,}): "
            "shrink the picture or raise the limit"
        )
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # larger than OpenCV's limit of 2^30 pixels
        if _is_about_memory(error):
            raise
        picture = None
    if picture is None:
        raise FastcamError(_unreadable(name))
    return picture  # type: ignore[return-value]  # uint8 by the flag


@contextmanager
def enough_memory(name: Path | str) -> Iterator[None]:
    """Turns a failed allocation in the block into a FastcamError about the picture."""
    import cv2

    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not _is_about_memory(error):
            raise
        raise FastcamError(f"{name}: not enough memory for this picture") from error


def _is_about_memory(error: Exception) -> bool:
    """Whether torch, NumPy or OpenCV could not allocate."""
    return isinstance(error, MemoryError) or "alloc" in str(error) or "memory" in str(error)


def data_of(path: Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of a file that begins like a picture; of a huge one, enough of them.

    Raises:
        FastcamError: if the file cannot be read or does not begin like a picture.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.peek(_HEAD)
            if not head:
                raise FastcamError(f"{path}: the file is empty")
            if not headers.is_picture(head):
                raise FastcamError(_unreadable(path))
            most = _BYTES * max_pixels
            return file.read(min(os.fstat(file.fileno()).st_size or most, most))  # 0: a pipe
    except FileNotFoundError:
        raise FastcamError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise FastcamError(f"{path}: expected a picture, got a folder") from None
    except OSError as error:
        raise FastcamError(f"{path}: {error.strerror}") from None


def _unreadable(name: Path | str) -> str:
    return f"{name}: not a picture that OpenCV can read, or truncated"


def write(path: Path, picture: Picture) -> None:
    """Writes (H, W, 3), RGB, in the format given by the path's suffix."""
    bgr = np.ascontiguousarray(picture[..., ::-1])
    del picture  # its memory, if the caller has not kept it either
    with replacing(path) as temporary:
        temporary.write_bytes(_encoded(bgr, path.suffix).data)


def encoded(picture: Picture, suffix: str) -> bytes:
    """(H, W, 3), RGB, in the format given by a suffix such as ".png"."""
    return _encoded(picture[..., ::-1], suffix).tobytes()


def _encoded(bgr: Picture, suffix: str) -> NDArray[np.uint8]:
    import cv2

    return cv2.imencode(suffix, bgr)[1]


def can_write(path: Path) -> bool:
    """Whether pictures are written in the format given by the path's suffix."""
    import cv2

    return bool(path.suffix) and cv2.haveImageWriter(str(path))
