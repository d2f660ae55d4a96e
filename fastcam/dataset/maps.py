"""Reads the maps of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from fastcam import ops
from fastcam.dataset import manifest, settings
from fastcam.dataset.shards import folder_of
from fastcam.errors import ArgumentError, FastcamError
from fastcam.methods.maps import Size
from fastcam.storage import MapFile, unpacked


class MapDataset(Dataset[dict[str, Any]]):
    """The maps that ``fastcam dataset`` has written: random access, also from a DataLoader.

    Each entry has ``index``, ``path``, ``label`` (as text, "" if there is none), ``class_ids``,
    ``scores`` and ``probabilities`` (K,), and ``maps``, by method (K, *size) float32. A picture
    that could not be explained has maps and numbers of NaN, and class ids -1. A DataLoader joins
    entries to batches if their maps have one size.

    Args:
        folder: the output folder of a complete run.
        methods: the methods to read; by default all.
        size: the maps' extents, by default those of the network's input; "layer" for the layer's
            own.
        normalize: whether to scale each map to [0, 1], as methods do; otherwise the values are
            those of the raw map.

    Raises:
        FastcamError: if the folder has no complete run.
        ValueError: if there is no such method, or the size does not fit.
    """

    def __init__(
        self,
        folder: Path | str,
        methods: Sequence[str] | None = None,
        *,
        size: Size = None,
        normalize: bool = True,
    ) -> None:
        self.folder = Path(folder)
        found = settings.read(self.folder)
        path = self.folder / manifest.MANIFEST
        if not path.exists():
            raise FastcamError(
                f"{self.folder}: the run has not finished; run fastcam dataset again to go on"
            )
        self.methods = tuple(found["methods"] if methods is None else methods)
        """The names of the methods."""
        for method in self.methods:
            if method not in found["methods"]:
                known = ", ".join(found["methods"]) or "none"
                raise ArgumentError("methods", f"got {method}, expected some of {known}")
        if isinstance(size, str) and size != "layer":
            raise ArgumentError("size", f'got {size!r}, expected two integers or "layer"')
        self.manifest = manifest.read(path)
        """One row for each picture, a pyarrow table."""
        self._shard = int(found["shard"])
        self._size, self._normalize = size, normalize
        inputs = self.manifest["input"].drop_null()
        self._usual: list[int] | None = inputs[0].as_py() if len(inputs) else None
        self._files: dict[tuple[int, str], MapFile] = {}

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: got {index}, expected it below {len(self)}")
        number, place = divmod(index % len(self), self._shard)
        row = self.manifest.slice(index % len(self), 1).select(["path", "label", "input"])
        about = row.to_pylist()[0]
        entry: dict[str, Any] = {
            "index": index % len(self),
            "path": about["path"],
            "label": about["label"] or "",
            "maps": {},
        }
        for method in self.methods:
            found = self._file(number, method)[place]
            entry |= {
                "class_ids": found["classes"],
                "scores": found["scores"],
                "probabilities": found["probabilities"],
            }
            entry["maps"][method] = self._sized(
                found["maps"], found["ranges"], about["input"] or self._usual
            )
        return entry

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}}

    def _file(self, number: int, method: str) -> MapFile:
        """The file of a shard, which stays open."""
        key = number, method
        if key not in self._files:
            if len(self._files) >= _OPEN:
                self._files.pop(next(iter(self._files)))
            folder = folder_of(self.folder, number)
            self._files[key] = MapFile(folder / f"{method}.safetensors")
        return self._files[key]

    def _sized(self, maps: Tensor, ranges: Tensor, given: list[int] | None) -> Tensor:
        raw = unpacked(maps, ranges)
        if self._size == "layer":
            return maps.float() if self._normalize else raw
        size = given if self._size is None else self._size
        if size is None:  # no picture could be explained
            return maps.float()
        return ops.upsample(raw, tuple(size), self._normalize)


_OPEN = 64  # files at once
