"""Explains one picture: the overlay, the grid of classes, the raw maps and a JSON report."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcam import ops, pictures
from fastcam.cli import json, outputs
from fastcam.errors import UsageError
from fastcam.explainer import Explained, Explainer
from fastcam.models import LoadedModel
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
    style: render.Style

    @property
    def overlay(self) -> Picture:
        """The heatmap of the first class over the picture, and what the style has around it."""
        low, high = self.classes[0]["range"]
        return render.arranged(
            self.picture, self._overlay(0), self.style, (low, high), self._title(0)
        )

    @property
    def grid(self) -> Picture:
        """The picture beside the heatmap of each class, with its name and probability."""
        return render.grid(self._panels())

    def _panels(self) -> Iterator[tuple[render.Title, Picture]]:
        yield render.Title("picture"), self.picture
        for k in range(min(len(self.classes), render.MOST_PANELS - 1)):
            yield self._title(k), self._overlay(k)

    def _title(self, k: int) -> render.Title:
        return render.Title(self.classes[k]["name"], f"{self.classes[k]['probability']:.1%}")

    def _overlay(self, k: int) -> Picture:
        heat = ops.upsample(self.explained.heat(k), self.explained.maps.shape[-2:])  # in [0, 1]
        batch = torch.from_numpy(self.picture).unsqueeze(0)
        return render.heat(batch, heat, self.region, self.style)[0].numpy()


def explain(
    picture: Picture,
    explainer: Explainer,
    targets: TopClasses,
    style: render.Style | None = None,
) -> ImageExplanation:
    """Explains the classes of a picture.

    Args:
        picture: (H, W, 3), RGB.
        explainer: the model, method and layer.
        targets: selects the K classes.
        style: how the maps are drawn.

    Raises:
        UsageError: if the network takes clips, or as :class:`fastcam.explainer.Explainer` does.
        FastcamError: if the model fails on this picture, or there is not enough memory.
    """
    model = explainer.model
    check(model)
    batch = torch.from_numpy(picture).unsqueeze(0)
    region = model.preprocessing.region(*picture.shape[:2])
    explained = explainer(model.preprocessing(batch), targets)
    classes = []
    for k, class_id in enumerate(explained.class_ids[0].tolist()):
        raw = explained.maps[0, k]
        classes.append(
            {
                "id": class_id,
                "name": explainer.title(class_id, targets),
                "score": explained.scores[0, k].item(),
                "probability": explained.probabilities[0, k].item(),
                "range": [raw.min().item(), raw.max().item()],
            }
        )
    if len(classes) >= render.MOST_PANELS:
        warnings.warn(
            f"the grid shows the first {render.MOST_PANELS - 1} of {len(classes)} classes; the "
            ".npy and .json files have all",
            stacklevel=2,
        )
    return ImageExplanation(picture, explained, classes, region, style or render.Style())


def check(model: LoadedModel) -> None:
    """Raises UsageError if the network takes clips."""
    if model.clip_length is not None:
        raise UsageError(
            f"the network takes clips of {model.clip_length} frames, not pictures: "
            "use fastcam video"
        )


FILES = {
    "overlay": "{}-overlay.png",
    "grid": "{}-grid.png",
    "maps": "{}.npy",
    "report": "{}.json",
}
"""What :func:`save` writes, by kind; {} is the picture's name."""


def save(
    explanation: ImageExplanation, folder: Path, name: str, about: dict[str, Any]
) -> dict[str, Any]:
    """Writes NAME-overlay.png, NAME-grid.png, NAME.npy (the raw maps) and NAME.json.

    Returns:
        The contents of NAME.json: ``about``, the classes, the region and the other files.
    """
    maps = explanation.explained.maps[0].numpy()  # (K, h, w) float32
    paths = outputs.paths(FILES, folder, name)
    pictures.write(paths["overlay"], explanation.overlay)
    pictures.write(paths["grid"], explanation.grid)
    with pictures.replacing(paths["maps"]) as temporary:
        np.save(temporary, maps)
    found = (f"{each['name']} {each['probability']:.1%}" for each in explanation.classes)
    report = {
        **about,
        "found": ", ".join(found),
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
