"""Pictures with instances at random places, and the same instances in every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastcam import pictures

FORMATS = ("coco", "voc", "csv", "masks")
Size = tuple[int, int]


class Instance(NamedTuple):
    picture: str
    """With its suffix."""
    name: str
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1, the far edge is outside."""


def placed(sizes: dict[str, Size], names: Sequence[str], seed: int = 0) -> list[Instance]:
    """One to three instances in each picture."""
    random = np.random.default_rng(seed)
    found = []
    for picture, (height, width) in sizes.items():
        for _ in range(random.integers(1, 4)):
            x0, y0 = random.integers(0, width - 12), random.integers(0, height - 12)
            x1, y1 = random.integers(x0 + 4, width + 1), random.integers(y0 + 4, height + 1)
            box = (int(x0), int(y0), int(x1), int(y1))
            found.append(Instance(picture, str(random.choice(names)), box))
    return found


def save(folder: Path, kind: str, sizes: dict[str, Size], instances: Iterable[Instance]) -> Path:
    """Writes them in one of the formats; returns what to give as annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"coco": _coco, "voc": _voc, "csv": _csv, "masks": _masks}[kind](
        folder, sizes, list(instances)
    )


def _coco(folder: Path, sizes: dict[str, Size], instances: list[Instance]) -> Path:
    ids = {picture: 100 + number for number, picture in enumerate(sizes)}
    names = sorted({each.name for each in instances})
    content = {
        "images": [
            {"id": ids[picture], "file_name": f"val/{picture}", "height": height, "width": width}
            for picture, (height, width) in sizes.items()
        ],
        "categories": [{"id": 7 * k + 1, "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": number,
                "image_id": ids[picture],
                "category_id": 7 * names.index(name) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
            }
            for number, (picture, name, (x0, y0, x1, y1)) in enumerate(instances)
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def _voc(folder: Path, sizes: dict[str, Size], instances: list[Instance]) -> Path:
    for picture, (height, width) in sizes.items():
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for owner, name, (x0, y0, x1, y1) in instances
            if owner == picture
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (folder / Path(picture).with_suffix(".xml").name).write_text(text)
    return folder


def _csv(folder: Path, sizes: dict[str, Size], instances: list[Instance]) -> Path:
    path = folder / "boxes.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "x0", "y0", "x1", "y1"])
        rows.writerows([each.picture, each.name, *each.box] for each in instances)
    return path


def _masks(folder: Path, sizes: dict[str, Size], instances: list[Instance]) -> Path:
    for picture, name in {(each.picture, each.name) for each in instances}:
        mask = np.zeros((*sizes[picture], 3), np.uint8)
        for owner, other, (x0, y0, x1, y1) in instances:
            if (owner, other) == (picture, name):
                mask[y0:y1, x0:x1] = 1
        pictures.write(folder / Path(picture).stem / f"{name}.png", mask)
    return folder
