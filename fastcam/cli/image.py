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
from fastcam.errors import UsageError
from fastcam.explainer import Explained, Explainer
from fastcam.pictures import Picture, render
from fastcam.targets import TopClasses


@dataclass(frozen=True)
class ImageExplanation:
    """The explanation of K classes of one picture."""

    overlay: Picture
    """The heatmap of the first class over the picture."""
    grid: Picture
    """The picture beside the heatmap of each class, with its name and probability."""
    explained: Explained
    """A batch of one picture: maps (1, K, h, w)."""
    classes: list[dict[str, Any]]
    """For each class: id, name, score, probability and the range of the raw map."""
    region: render.Region
    """The part of the picture inside the network's input."""


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
        UsageError: if the network takes clips, or as :class:`fastcam.explainer.Explainer` does.
    """
    model = explainer.model
    if model.clip_length is not None:
        raise UsageError(
            f"the network takes clips of {model.clip_length} frames, not pictures: "
            "use fastcam video"
        )
    batch = torch.from_numpy(picture).unsqueeze(0)
    region = model.preprocessing.region(*picture.shape[:2])
    explained = explainer(model.preprocessing(batch), targets)
    classes, overlays = [], []
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
        seen = region.bottom - region.top, region.right - region.left
        heat = ops.upsample(explained.heat(k), seen)
        overlays.append(render.heat(batch, heat, region, colormap, alpha)[0].numpy())
    titles = [render.Title(each["name"], f"{each['probability']:.1%}") for each in classes]
    grid = render.grid([(render.Title("picture"), picture), *zip(titles, overlays, strict=True)])
    return ImageExplanation(overlays[0], grid, explained, classes, region)


def save(
    explanation: ImageExplanation, folder: Path, name: str, about: dict[str, Any]
) -> dict[str, Any]:
    """Writes NAME-overlay.png, NAME-grid.png, NAME.npy (the raw maps) and NAME.json.

    Returns:
        The contents of NAME.json: ``about``, the classes, the region and the files.
    """
    maps = explanation.explained.maps[0].numpy()  # (K, h, w) float32
    files = {
        "overlay": folder / f"{name}-overlay.png",
        "grid": folder / f"{name}-grid.png",
        "maps": folder / f"{name}.npy",
    }
    pictures.write(files["overlay"], explanation.overlay)
    pictures.write(files["grid"], explanation.grid)
    with pictures.replacing(files["maps"]) as temporary:
        np.save(temporary, maps)
    found = (f"{each['name']} {each['probability']:.1%}" for each in explanation.classes)
    report = {
        **about,
        "found": ", ".join(found),
        "classes": explanation.classes,
        "shape": list(maps.shape),
        "region": explanation.region._asdict(),
        "files": {kind: str(path) for kind, path in files.items()},
    }
    with pictures.replacing(folder / f"{name}.json") as temporary:
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
