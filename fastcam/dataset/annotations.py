"""What a person has marked in pictures: boxes and masks with their classes, from four formats.

================= ================================================================================
a .json file      COCO: ``images``, ``annotations`` with ``bbox`` (x, y, width, height) and
                  ``categories``. Segmentations are not read, crowds (``iscrowd``) are left out
a folder of .xml  Pascal VOC and ImageNet: ``bndbox``, whose first pixel is (1, 1) and whose last
                  one is inside
a .csv file       columns ``path``, ``label``, ``x0``, ``y0``, ``x1``, ``y1``; the far edge is
                  outside
a folder of .png  ``PICTURE/LABEL.png``: a mask of all instances of a class, nonzero inside
================= ================================================================================
"""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fastcam.dataset.inputs import Inputs, Size
from fastcam.errors import FastcamError, UsageError

_COLUMNS = ("path", "label", "x0", "y0", "x1", "y1")


class Mark(NamedTuple):
    """An instance in a picture."""

    name: str
    """That of its class, or a class id."""
    box: tuple[float, float, float, float] | None
    """x0, y0, x1, y1 in pixels of the picture; the far edge is outside."""
    mask: Path | None
    """A picture that is not 0 inside."""


@dataclass
class Annotation:
    """The instances of one picture."""

    size: Size | None = None
    """Of the picture that was annotated; None if unknown."""
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Annotations:
    """The annotated pictures of a file or folder.

    Attributes:
        path: the file or folder.
        by_name: by the name of a picture as the format has it.
        have_boxes: whether instances are boxes, otherwise masks.
    """

    path: Path
    by_name: dict[str, Annotation]
    have_boxes: bool

    def matched(self, inputs: Inputs) -> dict[int, Annotation]:
        """The annotations of a data set's pictures, by their places.

        A name is that of a picture if it is its path from the source, with or without the suffix,
        or else its file name, if no other picture has that.

        Raises:
            UsageError: if a name could be that of several pictures, two names are that of the same
                picture, or none is that of any.
        """
        keys = [item.key for item in inputs.items]
        found: dict[int, Annotation] = {}
        tables = [
            _places(keys),
            _places(map(_without_suffix, keys)),
            _places(PurePosixPath(_without_suffix(key)).name for key in keys),
        ]
        for name, annotation in self.by_name.items():
            stem = _without_suffix(name)
            wanted = (name, stem, PurePosixPath(stem).name)
            places = next(
                (table[each] for table, each in zip(tables, wanted, strict=True) if each in table),
                [],
            )
            if len(places) > 1:
                raise UsageError(
                    f"{self.path}: {name} could be {keys[places[0]]} or {keys[places[1]]}; give "
                    "the path from the source"
                )
            for place in places:
                if place in found:
                    raise UsageError(f"{self.path}: {keys[place]} is there twice, expected once")
                found[place] = annotation
        if not found:
            first = next(iter(self.by_name), "none")
            raise UsageError(
                f"{self.path}: it has no picture of {inputs.source}: the first name there is "
                f"{first}, the first picture here {keys[0]}"
            )
        return found


def read_annotations(path: Path) -> Annotations:
    """Reads annotations; for the formats see :mod:`fastcam.dataset.annotations`.

    Raises:
        UsageError: if it is none of them.
        FastcamError: if it cannot be read, or a box is not a box.
    """
    try:
        return _read(path)
    except OSError as error:
        raise FastcamError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read(path: Path) -> Annotations:
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if path.is_dir():
        documents, masks = (sorted(path.rglob(f"*.{kind}")) for kind in ("xml", "png"))
        if documents and masks:
            raise UsageError(
                f"{path}: it has .xml and .png files; give the folder of one kind of annotations"
            )
        if documents:
            return Annotations(path, dict(_voc(path, each) for each in documents), True)
        if masks:
            return Annotations(path, _masks(path, masks), False)
        raise UsageError(f"{path}: the folder has neither .xml files nor PICTURE/LABEL.png")
    readers = {".json": _coco, ".csv": _table}
    if path.suffix.lower() not in readers:
        raise UsageError(
            f"{path}: expected a .json or .csv file, or a folder of .xml or .png files"
        )
    return Annotations(path, readers[path.suffix.lower()](path), True)


def _coco(path: Path) -> dict[str, Annotation]:
    try:
        content = json.loads(path.read_bytes())
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        by_id = {
            each["id"]: Annotation(_size(each.get("height"), each.get("width")))
            for each in content["images"]
        }
        by_name = {str(each["file_name"]): by_id[each["id"]] for each in content["images"]}
        for each in content["annotations"]:
            if not each.get("iscrowd"):
                x, y, width, height = each["bbox"]
                where = f"{path}: annotation {each.get('id')}"
                box = _box(where, x, y, x + width, y + height)
                by_id[each["image_id"]].marks.append(Mark(names[each["category_id"]], box, None))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FastcamError(
            f"{path}: not COCO's format, or incomplete: {type(error).__name__} {error}"
        ) from None
    return by_name


def _voc(folder: Path, path: Path) -> tuple[str, Annotation]:
    """The name of a picture, which is that of the document, and its annotation."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    try:
        root = ElementTree.parse(path).getroot()
        found = Annotation(_size(*(root.findtext(f"size/{each}") for each in ("height", "width"))))
        for each in root.iter("object"):
            ends = [float(each.findtext(f"bndbox/{end}") or "") for end in _VOC_ENDS]
            box = _box(str(path), ends[0] - 1, ends[1] - 1, ends[2], ends[3])
            found.marks.append(Mark((each.findtext("name") or "").strip(), box, None))
    except (ElementTree.ParseError, ValueError) as error:
        raise FastcamError(f"{path}: not Pascal VOC's format, or incomplete: {error}") from None
    return name, found


_VOC_ENDS = ("xmin", "ymin", "xmax", "ymax")


def _table(path: Path) -> dict[str, Annotation]:
    found: dict[str, Annotation] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [each for each in _COLUMNS if each not in (reader.fieldnames or [])]
            if missing:
                raise UsageError(
                    f"{path}: the columns {', '.join(missing)} are missing, expected "
                    f"{', '.join(_COLUMNS)}"
                )
            for number, row in enumerate(reader, start=1):
                values = [float(row[each] or "") for each in _COLUMNS[2:]]
                box = _box(f"{path}: row {number}", *values)
                marks = found.setdefault(row["path"], Annotation()).marks
                marks.append(Mark(row["label"].strip(), box, None))
    except (csv.Error, ValueError, AttributeError) as error:
        raise FastcamError(f"{path}: not a table of boxes in UTF-8 with commas: {error}") from None
    return found


def _masks(folder: Path, paths: Iterable[Path]) -> dict[str, Annotation]:
    found: dict[str, Annotation] = {}
    for path in paths:
        name = path.parent.relative_to(folder).as_posix()
        if name == ".":
            raise UsageError(
                f"{path}: expected PICTURE/LABEL.png, a folder for each picture with a mask for "
                "each class"
            )
        found.setdefault(name, Annotation()).marks.append(Mark(path.stem, None, path))
    return found


def _box(
    where: str, x0: float, y0: float, x1: float, y1: float
) -> tuple[float, float, float, float]:
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 <= x1 and y0 <= y1):
        raise FastcamError(
            f"{where}: got a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), expected the end "
            "to the right and below"
        )
    return float(x0), float(y0), float(x1), float(y1)


def _size(height: Any, width: Any) -> Size | None:
    """None if unknown, for which some tools write 0."""
    return (int(height), int(width)) if int(height or 0) and int(width or 0) else None


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


def _without_suffix(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix() if name else name


def names_in(annotations: Iterable[Annotation]) -> list[str]:
    """The names of classes, the most frequent first."""
    counts = Counter(mark.name for each in annotations for mark in each.marks)
    return [name for name, _ in counts.most_common()]
