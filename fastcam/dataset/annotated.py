"""Pictures with what a person has marked in them, moved to where the network sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fastcam import pictures
from fastcam.dataset.annotations import Annotation, Annotations, Mark
from fastcam.dataset.inputs import Inputs, Item, Size
from fastcam.errors import FastcamError
from fastcam.pictures import MAX_PIXELS
from fastcam.pictures.render import Region


@dataclass(frozen=True)
class Instances:
    """What is marked in one picture, in pixels of the network's input."""

    class_ids: NDArray[Any]
    """(I,), of the instances that the network sees."""
    regions: NDArray[Any]
    """Their boxes (I, 4) x0, y0, x1, y1, clipped to the input, or their masks (I, h, w)."""
    outside: NDArray[Any]
    """(J,), the class ids of the instances that the network does not see."""

    def of(self, class_id: int, own: bool) -> NDArray[Any]:
        """The regions of a class, or those of all others."""
        return self.regions[(self.class_ids == class_id) == own]

    def counts(self, class_id: int) -> list[int]:
        """The number of instances of a class that the network sees, and that it does not."""
        return [int((ids == class_id).sum()) for ids in (self.class_ids, self.outside)]


class Annotated(Inputs):
    """A data set's pictures with annotations.

    Args:
        inputs: the data set.
        annotations: its annotations.
        class_ids: by name in the annotations.
        each_class: whether a picture is there once for each of its annotated classes, and not at
            all if it has none. Otherwise all pictures are there once.
    """

    def __init__(
        self,
        inputs: Inputs,
        annotations: Annotations,
        class_ids: Mapping[str, int],
        each_class: bool,
    ) -> None:
        self._inputs, self._class_ids = inputs, class_ids
        self._have_boxes = annotations.have_boxes
        self._annotations = annotations.matched(inputs)
        self.absent = len(annotations.by_name) - len(self._annotations)
        """How many annotated pictures the data set does not have."""
        marked = {place for place, each in self._annotations.items() if each.marks}
        self.unmarked = len(inputs) - len(marked)
        """How many pictures of the data set have no instance."""
        self.classes: list[int | None] | None = None
        """The class of each row, if each has an annotated one."""
        self._places = list(range(len(inputs)))
        items = inputs.items
        if each_class:
            rows = [
                (place, class_id, name)
                for place in sorted(marked)
                for class_id, name in self._named(place)
            ]
            self._places = [place for place, _, _ in rows]
            self.classes = [class_id for _, class_id, _ in rows]
            items = [Item(inputs.items[place].key, name) for place, _, name in rows]
        if not items:
            raise FastcamError(f"{annotations.path}: no picture has an instance")
        names = () if each_class else inputs.label_names
        super().__init__(inputs.source, items, names)

    def _named(self, place: int) -> list[tuple[int, str]]:
        """The classes in a picture."""
        marks = self._annotations[place].marks
        return sorted({self._class_ids[each.name]: each.name for each in marks}.items())

    def data(self, index: int, max_pixels: int) -> bytes:
        return self._inputs.data(self._places[index], max_pixels)

    def digest(self) -> str:
        marks = [
            (place, each.size, [(mark.name, mark.box) for mark in each.marks])
            for place, each in sorted(self._annotations.items())
        ]
        ids = sorted(self._class_ids.items())
        return hashlib.sha256(repr((super().digest(), marks, ids)).encode()).hexdigest()

    def instances(self, index: int, size: Size, region: Region, extents: Size) -> Instances:
        place = self._places[index]
        known = self._annotations.get(place, Annotation())
        if known.size not in (None, size):
            height, width = known.size or size
            raise FastcamError(
                f"the annotations are for a picture of {width}x{height} pixels, but it has "
                f"{size[1]}x{size[0]}"
            )
        seen: list[NDArray[Any]] = []
        ids: tuple[list[int], list[int]] = [], []
        for mark in known.marks:
            moved = (
                _moved_mask(mark, size, region, extents)
                if mark.box is None
                else _moved_box(mark.box, size, region, extents)
            )
            ids[moved is None].append(self._class_ids[mark.name])
            if moved is not None:
                seen.append(moved)
        shape = (4,) if self._have_boxes else extents
        kind = np.float64 if self._have_boxes else np.bool_
        regions = np.stack(seen) if seen else np.zeros((0, *shape), kind)
        return Instances(np.array(ids[0], np.int64), regions, np.array(ids[1], np.int64))


def _moved_box(
    box: tuple[float, ...], size: Size, region: Region, extents: Size
) -> NDArray[Any] | None:
    """A box of the picture in pixels of the input; None if it is outside."""
    x0, y0, x1, y1 = box
    if min(x0, y0) < -1 or x1 > size[1] + 1 or y1 > size[0] + 1:
        raise FastcamError(
            f"it has a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), outside of its "
            f"{size[1]}x{size[0]} pixels"
        )
    across, down = extents[1] / region.width, extents[0] / region.height
    ends = np.array([x0, y0, x1, y1]).clip(0, [size[1], size[0]] * 2)
    moved = (ends - [region.left, region.top] * 2) * [across, down, across, down]
    moved = moved.clip(0, [extents[1], extents[0]] * 2)
    return moved if (moved[:2] < moved[2:]).all() else None


def _moved_mask(mark: Mark, size: Size, region: Region, extents: Size) -> NDArray[Any] | None:
    """A mask of the picture at the pixels of the input, by the nearest one; None if it is empty."""
    assert mark.mask is not None
    data = np.frombuffer(pictures.data_of(mark.mask, MAX_PIXELS), np.uint8)
    mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if mask is None:
        raise FastcamError(f"{mark.mask}: not a picture, or damaged")
    if mask.shape[:2] != size:
        height, width = mask.shape[:2]
        raise FastcamError(
            f"{mark.mask}: the mask has {width}x{height} pixels, the picture {size[1]}x{size[0]}"
        )
    inside = mask != 0 if mask.ndim == 2 else (mask[:, :, :3] != 0).any(2)  # without opacity
    lines, within = [], []
    for start, covered, extent, limit in (
        (region.top, region.height, extents[0], size[0]),
        (region.left, region.width, extents[1], size[1]),
    ):
        nearest = np.floor(start + (np.arange(extent) + 0.5) * covered / extent).astype(np.int64)
        within.append((nearest >= 0) & (nearest < limit))
        lines.append(nearest.clip(0, limit - 1))
    moved: NDArray[Any] = inside[np.ix_(*lines)] & within[0][:, None] & within[1]
    return moved if moved.any() else None
