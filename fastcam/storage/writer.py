"""Writes a file of maps row by row."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastcam.pictures import temporary_name

_CAPACITY = 100_000  # rows of a file
_HEAD = 1 << 16  # bytes for the header, which is known last
_COLUMNS = {
    "ranges": ("F32", "<f4"),
    "times": ("F64", "<f8"),
    "classes": ("I64", "<i8"),
    "scores": ("F32", "<f4"),
    "probabilities": ("F32", "<f4"),
    "extents": ("I64", "<i8"),
}
"""The types of all that a row has besides its maps: safetensors' and numpy's."""
_MAPS = ("F16", "<f2")


class MapWriter:
    """A file of maps under a temporary name: room for the header, the maps, then the rest.

    Args:
        path: the file, which :meth:`finish` may give another name in the same folder.
        about: metadata besides the classes' names.
        names: names of classes that the header has to have room for.

    Raises:
        OSError: if the file cannot be created; so do the other methods if it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, str] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.rows = 0
        """The number of rows written."""
        self._about, self._names = dict(about or {}), dict(names or {})
        self._shapes: dict[str, tuple[int, ...]] = {}  # of a row
        self._rest: dict[str, bytearray] = {}
        self._head = max(_HEAD, 2 * len(self._header(self._names, 0)))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_name(path)
        self._file = self._temporary.open("wb", buffering=0)  # what is counted is on the disk
        self._file.seek(self._head)

    def has_room_for(self, names: Mapping[int, str]) -> bool:
        """Whether a row with these classes can be added."""
        if self.rows >= _CAPACITY or names.keys() <= self._names.keys():
            return self.rows < _CAPACITY
        return len(self._header({**self._names, **names}, _CAPACITY)) <= self._head - 8

    def write(self, maps: Tensor, names: Mapping[int, str], **values: Any) -> None:
        """Adds a row.

        Args:
            maps: (h, w) or (K, h, w) in [0, 1]; the shape of all rows is that of the first.
            names: the names of the row's classes, by id.
            values: the row's other columns: see :mod:`fastcam.storage`.
        """
        row = maps.half().contiguous().numpy()
        columns = {
            name: np.asarray(values[name], kind)
            for name, (_, kind) in _COLUMNS.items()
            if name in values
        }
        shapes = {"maps": row.shape, **{name: each.shape for name, each in columns.items()}}
        if not self._shapes:
            self._shapes = shapes
        assert shapes == self._shapes and len(columns) == len(values)
        self._write(row.tobytes())
        for name, column in columns.items():
            self._rest.setdefault(name, bytearray()).extend(column.tobytes())
        self._names.update(names)
        self.rows += 1

    def finish(self, path: Path) -> bool:
        """Names the file ``path`` if it contains a row.

        On a full disk the last maps make room for what belongs to the others.
        """
        try:
            while self.rows:
                try:
                    self._write_rest()
                except OSError:
                    self.rows = self.rows * 3 // 4
                    if not self.rows:
                        raise
                else:
                    self._file.close()
                    self._temporary.replace(path)
                    return True
            return False
        finally:
            self._file.close()
            with suppress(OSError):  # already renamed
                self._temporary.unlink()

    def _write_rest(self) -> None:
        sizes = self._sizes(self.rows)
        self._file.truncate(self._head + sizes.pop("maps"))
        self._file.seek(0, os.SEEK_END)
        for name, size in sizes.items():
            self._write(self._rest[name][:size])
        header = self._header(self._names, self.rows).ljust(self._head - 8)
        self._file.seek(0)
        self._write(struct.pack("<Q", len(header)) + header)

    def _sizes(self, rows: int) -> dict[str, int]:
        """In bytes."""
        return {
            name: rows * math.prod(shape) * np.dtype(_kinds(name)[1]).itemsize
            for name, shape in self._shapes.items()
        }

    def _header(self, names: Mapping[int, str], rows: int) -> bytes:
        """As in https://github.com/huggingface/safetensors#format; spaces may follow."""
        entries: dict[str, Any] = {"__metadata__": {**self._about, "classes": json.dumps(names)}}
        end = 0
        for name, size in self._sizes(rows).items():
            entries[name] = {
                "dtype": _kinds(name)[0],
                "shape": (rows, *self._shapes[name]),
                "data_offsets": (end, end := end + size),
            }
        return json.dumps(entries).encode()

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


def _kinds(name: str) -> tuple[str, str]:
    return _COLUMNS.get(name, _MAPS)
