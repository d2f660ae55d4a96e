"""The blocks of a GIF (https://www.w3.org/Graphics/GIF/spec-gif89a.txt)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_HEADER, _DESCRIPTOR = 13, 9  # bytes
_IMAGE, _EXTENSION, _TRAILER = b",", b"!", b";"


def cut_to_whole_frames(path: Path) -> None:
    """Ends a GIF after its last complete frame: viewers show a part of a frame as well."""
    with path.open("r+b") as file:
        header = file.read(_HEADER)
        if len(header) < _HEADER:
            return
        end = file.seek(_table(header[10]), os.SEEK_CUR)
        while kind := file.read(1):
            if kind == _IMAGE:
                descriptor = file.read(_DESCRIPTOR)
                if len(descriptor) < _DESCRIPTOR:
                    break
                file.seek(_table(descriptor[8]) + 1, os.SEEK_CUR)  # and the size of its codes
            elif kind == _EXTENSION:
                file.seek(1, os.SEEK_CUR)
            if kind == _TRAILER or not _skip_data(file):
                break
            if kind == _IMAGE:
                end = file.tell()
        file.truncate(end)
        file.seek(end)
        with suppress(OSError):  # viewers do without it
            file.write(_TRAILER)


def _table(flags: int) -> int:
    """The bytes of the colour table that the flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_data(file: BinaryIO) -> bool:
    """Skips blocks of data up to an empty one; False if the file ends before."""
    while length := file.read(1):
        if length == b"\0":
            return True
        file.seek(length[0], os.SEEK_CUR)
    return False
