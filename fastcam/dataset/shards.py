"""One shard: the pictures at some places of the data set, collected and written as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcam.dataset import manifest
from fastcam.explainer import Explained
from fastcam.pictures import cannot_write, temporary_name
from fastcam.storage import MapWriter, packed

FOLDER = "shards"


class Packed(NamedTuple):
    """A batch of explained pictures as it is stored."""

    class_ids: Tensor
    """(N, K)."""
    scores: Tensor
    """(N, K)."""
    probabilities: Tensor
    """(N, K)."""
    maps: dict[str, tuple[Tensor, Tensor]]
    """By method, maps (N, K, h, w) float16 in [0, 1] and ranges (N, K, 2)."""
    values: dict[str, Tensor]
    """By column of the manifest, those of metrics, (N,) or (N, V)."""

    @classmethod
    def of(cls, explained: Explained, values: dict[str, Tensor]) -> Packed:
        maps = {method: packed(raw) for method, raw in explained.by_method.items()}
        return cls(explained.class_ids, explained.scores, explained.probabilities, maps, values)

    def row(self, number: int) -> Packed:
        """One picture of the batch, without the axis of pictures."""
        maps = {method: (each[0][number], each[1][number]) for method, each in self.maps.items()}
        values = {name: each[number] for name, each in self.values.items()}
        return Packed(
            self.class_ids[number], self.scores[number], self.probabilities[number], maps, values
        )


@dataclass
class Shard:
    """The results of one shard, by their place in the data set.

    Args:
        number: its number.
        places: those of its pictures.
        methods: the names of the methods.
        classes: K, the number of classes per picture.
        about: metadata of the files of maps.
        metrics: the names of the metrics.
    """

    number: int
    places: range
    methods: Sequence[str]
    classes: int
    about: Mapping[str, str]
    metrics: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._explained: dict[int, Packed] = {}
        self._rows: dict[int, dict[str, Any]] = {}
        self._failures: dict[int, dict[str, Any]] = {}

    def add(self, row: dict[str, Any], found: Packed) -> None:
        """Keeps the map of a picture, and its row of the manifest, which has its ``index``."""
        index = row["index"]
        ranges = {f"range_{method}": each[1].tolist() for method, each in found.maps.items()}
        values = {
            "class_ids": found.class_ids.tolist(),
            "scores": found.scores.tolist(),
            "probabilities": found.probabilities.tolist(),
            **{name: each.tolist() for name, each in found.values.items()},
        }
        self._explained[index] = found
        self._rows[index] = {**row, **values, **ranges}

    def fail(self, row: dict[str, Any], error: str) -> None:
        """Keeps the place of a picture without a map."""
        self._rows[row["index"]] = row
        kept = {name: row.get(name) for name in ("index", "path", "sha256")}
        self._failures[row["index"]] = {**kept, "error": error}

    def commit(self, out: Path) -> None:
        """Writes the shard under a temporary name, and gives the whole of it its name at once.

        Does nothing if another process has written the same shard before.

        Raises:
            FastcamError: if it cannot be written.
        """
        target = folder_of(out, self.number)
        temporary = temporary_name(target)
        try:
            temporary.mkdir(parents=True)
            for method in self.methods:
                self._write_maps(temporary / f"{method}.safetensors", method)
            rows = [self._rows[index] for index in self.places]
            failures = [self._failures[index] for index in sorted(self._failures)]
            columns = manifest.schema(self.methods, self.metrics)
            manifest.write_part(temporary, rows, failures, columns)
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            if not target.exists():
                temporary.rename(target)
                _sync(target.parent)
        except OSError as error:
            if not target.exists():
                raise cannot_write(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write_maps(self, path: Path, method: str) -> None:
        names: dict[int, str] = {}
        for row in self._rows.values():
            names.update(zip(row.get("class_ids", ()), row.get("class_names", ()), strict=True))
        every = [each.maps[method][0] for each in self._explained.values()]
        height, width = (max((each.shape[axis] for each in every), default=0) for axis in (-2, -1))
        writer = MapWriter(path, {**self.about, "method": method}, names)
        for index in self.places:
            maps = torch.full((self.classes, height, width), torch.nan, dtype=torch.float16)
            nothing = torch.full((self.classes,), torch.nan)
            found = self._explained.get(index)
            if found is None:
                found = Packed(
                    torch.full((self.classes,), -1),
                    nothing,
                    nothing,
                    {method: (maps, nothing.unsqueeze(1).expand(-1, 2))},
                    {},
                )
            own, ranges = found.maps[method]
            extents = own.shape[-2:]
            maps[:, : extents[0], : extents[1]] = own
            writer.write(
                maps,
                {},
                ranges=ranges,
                classes=found.class_ids,
                scores=found.scores,
                probabilities=found.probabilities,
                extents=extents,
            )
        writer.finish(path)


def folder_of(out: Path, number: int) -> Path:
    """Where a shard is."""
    return out / FOLDER / f"{number:05d}"


def clean(out: Path) -> None:
    """Removes what interrupted runs have left, once all shards are there."""
    for path in (out / FOLDER).glob(".fastcam-*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
