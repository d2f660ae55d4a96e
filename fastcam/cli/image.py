"""Explains one picture: the overlay, the grid of classes, the raw maps and a JSON report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcam import ops, pictures
from fastcam.cli import json
from fastcam.explainer import Explained, Explainer
from fastcam.pictures import Picture, render
from fastcam.targets import TopClasses


@dataclass(frozen=True)
class ImageExplanation:
    """The explanation of K classes of one picture. Its pictures are drawn on each access."""

    picture: Picture
    explained: Explained
    """A batch of one picture: maps (1, K, h, w)."""
    classes: list[dict[str, Any]]
    """For each class: id, name, score, probability and the range of the raw map."""
    region: render.Region
    """The rectangle of the picture that the network's input covers."""
    colormap: str
    alpha: float

    @property
    def overlay(self) -> Picture:
        """The heatmap of the first class over the picture."""
        return self._overlay(0)

    @property
    def grid(self) -> Picture:
        """The picture beside the heatmap of each class, with its name and probability."""
        return render.grid(self._panels())

    def _panels(self) -> Iterator[tuple[render.Title, Picture]]:
        yield render.Title("picture"), self.picture
        for k, each in enumerate(self.classes):
            yield render.Title(each["name"], f"{each['probability']:.1%}"), self._overlay(k)

    def _overlay(self, k: int) -> Picture:
        heat = ops.upsample(self.explained.heat(k), self.explained.maps.shape[-2:])  # in [0, 1]
        batch = torch.from_numpy(self.picture).unsqueeze(0)
        return render.heat(batch, heat, self.region, self.colormap, self.alpha)[0].numpy()


def explain(
    picture: Picture,
    explainer: Explainer,
    targets: TopClasses,
    colormap: str = "turbo",
    alpha: float = 0.5,
) -> ImageExplanation:
    """Explains the classes of a picture.

    Args:
        picture: (H, W, 3), RGB.
        explainer: the model, method and layer.
        targets: selects the K classes.
        colormap, alpha: see :func:`fastcam.pictures.render.overlay`.

    Raises:
        UsageError: as :class:`fastcam.explainer.Explainer` does.
        FastcamError: if the model fails on this picture, or there is not enough memory.
    """
    model = explainer.model
    batch = torch.from_numpy(picture).unsqueeze(0)
    region = model.preprocessing.region(*picture.shape[:2])
    explained = explainer(model.preprocessing(batch), targets)
    classes = []
    for k, class_id in enumerate(explained.class_ids[0].tolist()):
        raw = explained.maps[0, k]
        classes.append(
            {
                "id": class_id,
                "name": model.class_name(class_id),
                "score": explained.scores[0, k].item(),
                "probability": explained.probabilities[0, k].item(),
                "range": [raw.min().item(), raw.max().item()],
            }
        )
    return ImageExplanation(picture, explained, classes, region, colormap, alpha)


_KINDS = {
    "overlay": "{}-overlay.png",
    "grid": "{}-grid.png",
    "maps": "{}.npy",
    "report": "{}.json",
}


def files(folder: Path, name: str) -> dict[str, Path]:
    """What :func:`save` writes, by kind."""
    return {kind: folder / pattern.format(name) for kind, pattern in _KINDS.items()}


def save(
    explanation: ImageExplanation, folder: Path, name: str, about: dict[str, Any]
) -> dict[str, Any]:
    """Writes NAME-overlay.png, NAME-grid.png, NAME.npy (the raw maps) and NAME.json.

    Returns:
        The contents of NAME.json: ``about``, the classes, the region and the other files.
    """
    maps = explanation.explained.maps[0].numpy()  # (K, h, w) float32
    paths = files(folder, name)
    pictures.write(paths["overlay"], explanation.overlay)
    pictures.write(paths["grid"], explanation.grid)
    with pictures.replacing(paths["maps"]) as temporary:
        np.save(temporary, maps)
    report = {
        **about,
        "classes": explanation.classes,
        "shape": list(maps.shape),
        "region": explanation.region._asdict(),
        "files": {kind: str(path) for kind, path in paths.items() if kind != "report"},
    }
    with pictures.replacing(paths["report"]) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    return report


def output_names(paths: Iterable[Path]) -> Iterator[str]:
    """The stem of each path, with a number appended if it is already taken."""
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        yield name
