"""Reads a file of maps, row by row or whole."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastcam.errors import FastcamError


class MapFile:
    """An open file of maps: see :mod:`fastcam.storage`.

    Args:
        path: a file that ``fastcam video`` or ``fastcam dataset`` has written.

    Raises:
        FastcamError: if it cannot be read or is another file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise FastcamError(f"{path}: not a file of maps: {error}") from None
        about = self._file.metadata() or {}
        self.columns = tuple(self._file.keys())
        """The names of its tensors."""
        if "maps" not in self.columns or "classes" not in about:
            raise FastcamError(f"{path}: not a file of maps: it has no maps or no classes")
        self.names = {int(key): name for key, name in json.loads(about.pop("classes")).items()}
        """The names of classes by id."""
        self.about: dict[str, str] = about
        """The other metadata, such as ``method``."""

    def __len__(self) -> int:
        return self._file.get_slice("maps").get_shape()[0]

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """The tensors of one row; maps without what pads them to ``extents``."""
        found = {name: self._file.get_slice(name)[row] for name in self.columns}
        if "extents" in found:
            height, width = found["extents"].tolist()
            found["maps"] = found["maps"][..., :height, :width]
        return found

    def column(self, name: str) -> Tensor:
        """A tensor of all rows."""
        return self._file.get_tensor(name)
