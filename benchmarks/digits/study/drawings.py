"""The pictures of the page: intervals of every method, and scenes on which methods disagree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.digits.networks import ARCHITECTURES, LAYERS
from benchmarks.digits.scenes import Box
from benchmarks.digits.study.figures import Figure
from benchmarks.digits.study.measured import new_method
from benchmarks.digits.study.scenes import Scenes
from fastcam import metrics, pictures
from fastcam.pictures import render

SHOWN = ("gradcam", "gradcam++", "layercam", "mean-activation")
TITLES = {
    "auc": "own class hotter than another (AUC)",
    "recall": "instances found",
    "other_hits": "instances of another class hit",
}
ROWS = 3  # scenes for each network
ZOOM = 4


def plot(figures: Sequence[Figure], methods: Sequence[str], path: Path) -> None:
    """Three metrics of every method with their intervals, a row of panels for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, grid = pyplot.subplots(
        len(ARCHITECTURES),
        len(TITLES),
        figsize=(11, 1.2 + 0.22 * len(methods) * len(ARCHITECTURES)),
        sharey=True,
        layout="constrained",
        dpi=110,
    )
    panels = itertools.product(
        enumerate(ARCHITECTURES), enumerate(TITLES.items()), enumerate(LAYERS)
    )
    for (row, network), (column, (metric, title)), (place, layer) in panels:
        axes = grid[row][column]
        found = {
            figure.method: figure
            for figure in figures
            if (figure.network, figure.layer, figure.metric) == (network, layer, metric)
            and not figure.other
            and not figure.instances
        }
        heights = [i + 0.3 * place - 0.15 for i, name in enumerate(methods) if name in found]
        chosen = [found[name] for name in methods if name in found]
        axes.errorbar(
            [figure.value for figure in chosen],
            heights,
            xerr=np.array([[max(f.value - f.low, 0), max(f.high - f.value, 0)] for f in chosen]).T,
            fmt="os"[place],
            markersize=4,
            markerfacecolor=None if layer == "last" else "white",
            linewidth=1,
            label=f"layer: {layer}",
        )
        axes.set_title(f"{network}: {title}", fontsize=9)
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(alpha=0.2)
    picture.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pictures.replacing(path) as partial:
        picture.savefig(partial, format="png")
    pyplot.close(picture)


def draw_disagreement(networks: dict[str, nn.Module], scenes: Scenes, path: Path) -> None:
    """For each network the scenes on which the shown methods disagree most, layer before the last.

    They are those with the lowest mean correlation between pairs of maps. The explained class's
    boxes are white, the other digit's is black.
    """
    panels = []
    for name, network in networks.items():
        maps = maps_of(name, network, scenes)
        for scene in disagreement(maps).argsort(descending=True)[:ROWS].tolist():
            panels += list(_row(name, scenes, scene, {each: maps[each][scene] for each in maps}))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write(path, render.grid(panels))


def maps_of(name: str, network: nn.Module, scenes: Scenes) -> dict[str, Tensor]:
    """The maps (N, H, W) of the shown methods, at the layer before the last."""
    made = ((each, new_method(each, ARCHITECTURES[name], "before", network)) for each in SHOWN)
    return {each: method(scenes.images, scenes.class_ids) for each, method in made}


def disagreement(maps: dict[str, Tensor]) -> Tensor:
    """1 - the mean of (1 + r) / 2 over the pairs of methods, (N,), r the correlation."""
    pairs = itertools.combinations(maps.values(), 2)
    return 1 - torch.stack([metrics.coherency(*pair) for pair in pairs]).mean(0)


def _row(
    network: str, scenes: Scenes, scene: int, maps: dict[str, Tensor]
) -> Iterator[tuple[render.Title, pictures.Picture]]:
    image = scenes.images[scene : scene + 1]
    large = F.interpolate(image, scale_factor=ZOOM)
    plain = (255 * large).round().byte()
    label = int(scenes.class_ids[scene])
    yield render.Title(f"{network}: {label}", ""), _boxed(plain, scenes, scene)
    for name, heat in maps.items():
        enlarged = F.interpolate(heat[None, None], scale_factor=ZOOM, mode="bilinear")[:, 0]
        drawn = render.overlay(large, enlarged.clamp(0, 1))
        yield render.Title(name, ""), _boxed(drawn, scenes, scene)


def _boxed(picture: Tensor, scenes: Scenes, scene: int) -> pictures.Picture:
    """(1, 3, H, W) uint8 -> (H, W, 3), with the boxes of the scene's digits."""
    canvas = np.ascontiguousarray(picture[0].permute(1, 2, 0).numpy())
    coloured: list[tuple[Box, int]] = [
        *((box, 255) for box in scenes.own[scene]),
        *((box, 0) for box in scenes.others[scene]),
    ]
    for (left, top, right, bottom), grey in coloured:
        corners = (ZOOM * left, ZOOM * top), (ZOOM * right - 1, ZOOM * bottom - 1)
        cv2.rectangle(canvas, *corners, (grey,) * 3, 2)
    return canvas
