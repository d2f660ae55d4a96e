"""Target boxes: a detector's boxes in pictures and clips, and the heat for each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fastcam import pictures
from fastcam.cli import json, outputs
from fastcam.errors import FastcamError, UsageError, first_line, near
from fastcam.explainer.threads import Interrupts
from fastcam.methods import METHODS
from fastcam.methods.maps import MapMethod
from fastcam.models import LoadedModel, resized
from fastcam.pictures import Picture, render
from fastcam.pictures.boxes import draw_boxes
from fastcam.targets import Boxes
from fastcam.video import ExplainedFrame, Frame, Source, open_sink
from fastcam.video.pipeline import outcome, reporting

METHOD: Final = "layercam"
"""The method for boxes. The gradient of a box's score is not 0 at the box alone; methods that
average it over the positions, as Grad-CAM does, show every object of the class."""
THRESHOLD: Final = 0.5
_PANELS = 14  # of one grid, beside the picture


@dataclass(frozen=True)
class Detection:
    """One box of a picture."""

    box: list[float]
    """Left, top, right, bottom in pixels."""
    label: int
    name: str
    score: float
    """The detector's, in [0, 1]."""

    @property
    def title(self) -> str:
        """Its name and score, for people."""
        return f"{self.name} {self.score:.0%}"


@dataclass(frozen=True)
class Found:
    """The detections of one picture, the surest first."""

    picture: Picture
    detections: list[Detection]
    maps: Tensor
    """(B, H, W) float32 in [0, 1]."""
    style: render.Style

    def drawn(self, numbers: Iterable[int], named: bool = True) -> Picture:
        """The picture with these boxes and their heat, the hottest at each pixel."""
        chosen = list(numbers)
        if not chosen:
            return self.picture
        heat = self.maps[chosen].amax(0, keepdim=True)
        batch = torch.from_numpy(self.picture).unsqueeze(0)
        heated = self._heated(batch, heat)
        each = [self.detections[number] for number in chosen]
        names = [detection.title if named else "" for detection in each]
        return draw_boxes(heated, [detection.box for detection in each], names)

    def _heated(self, batch: Tensor, heat: Tensor) -> Picture:
        style = self.style
        drawn: Tensor = render.overlay(batch, heat, style.colormap, style.alpha, style.fade)
        return drawn[0].numpy()

    def every(self) -> Picture:
        """The picture with all boxes."""
        return self.drawn(range(len(self.detections)))

    def grid(self) -> Picture:
        """The picture, and beside it one panel for each box."""
        shown = range(min(len(self.detections), _PANELS))
        panels = [
            (
                render.Title(self.detections[k].name, f"{self.detections[k].score:.0%}"),
                self.drawn([k], named=False),
            )
            for k in shown
        ]
        return render.grid([(render.Title("picture"), self.picture), *panels])


class BoxExplainer:
    """Finds the boxes in pictures, and the heat for each.

    Args:
        model: from :func:`fastcam.models.detection.load_detector`.
        method: a method of maps of one run; "auto" for LayerCAM.
        layer: a dotted name, or several; "auto" for the levels of the feature pyramid.
        threshold: the least score of a box; None for 0.5.
        style: the colours of the heat; see :func:`check_style`.

    Raises:
        UsageError: if the method or the layer is unknown.
    """

    def __init__(
        self,
        model: LoadedModel,
        method: str = "auto",
        layer: str | Sequence[str] = "auto",
        threshold: float | None = None,
        style: render.Style | None = None,
    ) -> None:
        self.method = METHOD if method == "auto" else method
        made = METHODS.get(self.method)
        if made is None:
            hint = near(self.method, METHODS) or f"; choose from {', '.join(METHODS)}"
            raise UsageError(f"unknown method {self.method}{hint}")
        if not issubclass(made, MapMethod) or made.reruns or made.captures:
            raise UsageError(f"method {self.method} does not explain boxes; take {METHOD}")
        self.model, self.threshold = model, THRESHOLD if threshold is None else threshold
        self._style = style or render.Style()
        options: dict[str, Any] = {} if layer == "auto" else {"target_layers": layer}
        try:
            self._cam: Any = made(model.module, **options)
        except ValueError as error:
            raise UsageError(str(error)) from error

    @property
    def layers(self) -> list[str]:
        """The explained layers; empty before the first box if they are found."""
        return list(self._cam.layers)

    def __call__(self, picture: Picture) -> Found:
        """The detections of a picture (H, W, 3), RGB.

        Raises:
            UsageError: if the model is not a detector, or the method does not fit.
            FastcamError: if it fails on the picture.
        """
        parameter = next(self.model.module.parameters())
        image = torch.from_numpy(picture).permute(2, 0, 1).to(parameter) / 255
        try:
            with torch.no_grad():
                answer = self.model.module([image])
            (found,) = answer
            kept = self._kept(found)
            if not len(kept["boxes"]):
                empty = torch.zeros(0, *picture.shape[:2])
                return Found(picture, [], empty, self._style)
            maps = self._cam([image], Boxes(kept["boxes"], kept["labels"]))[0]
        except (KeyError, TypeError, IndexError) as error:
            raise UsageError(
                f"the model returned no boxes, labels and scores ({error}), which target boxes "
                "needs; give a detector"
            ) from error
        except ValueError as error:
            raise UsageError(" ".join(str(error).split())) from error
        except (RuntimeError, AssertionError) as error:
            height, width = picture.shape[:2]
            raise FastcamError(
                f"the model fails on a picture of {width}x{height} pixels: {first_line(error)}"
            ) from error
        rows = zip(*(kept[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
        detections = [Detection(box, k, self.model.class_name(k), score) for box, k, score in rows]
        return Found(picture, detections, maps.float().cpu(), self._style)

    def _kept(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The boxes with an area above the threshold, the surest first."""
        boxes, scores = found["boxes"], found["scores"]
        kept = (scores >= self.threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        order = kept.nonzero().flatten()
        order = order[scores[order].argsort(descending=True)]
        return {name: found[name][order] for name in ("boxes", "labels", "scores")}


FILES = {
    "boxes": "{}-boxes.png",
    "grid": "{}-grid.png",
    "maps": "{}.npy",
    "report": "{}.json",
}
"""What :func:`save` writes, by kind; {} is the picture's name."""


def save(found: Found, folder: Path, name: str, about: dict[str, Any]) -> dict[str, Any]:
    """Writes NAME-boxes.png, NAME-grid.png, NAME.npy (a map per box) and NAME.json.

    Returns:
        The contents of NAME.json.
    """
    paths = outputs.paths(FILES, folder, name)
    pictures.write(paths["boxes"], found.every())
    pictures.write(paths["grid"], found.grid())
    with pictures.replacing(paths["maps"]) as temporary:
        np.save(temporary, found.maps.numpy())
    report = {
        **about,
        "found": ", ".join(each.title for each in found.detections) or "no box above the threshold",
        "detections": [vars(each) for each in found.detections],
        "shape": list(found.maps.shape),
        "files": {kind: str(path) for kind, path in paths.items() if kind != "report"},
    }
    with pictures.replacing(paths["report"]) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    return report


def check_style(style: render.Style) -> None:
    """Raises UsageError for a style that boxes do not have: they have colours alone."""
    usual = render.Style(colormap=style.colormap, alpha=style.alpha, fade=style.fade)
    for option in ("layout", "enlarge", "colorbar"):
        given = getattr(style, option)
        if given != getattr(usual, option):
            raise UsageError(f"{option} {given}: not supported with --target boxes; leave it out")


def check_clip_options(stride: int, fast: bool, norm: str, smooth: str, sink: Path) -> None:
    """Raises UsageError for options of clips that boxes do not have.

    Args:
        stride, fast, norm, smooth, sink: those of the command.
    """
    if stride != 1:
        raise UsageError(
            f"stride {stride}: boxes are found in each frame and cannot be interpolated; leave it "
            "out with --target boxes"
        )
    for option, given, usual in (
        ("fast", fast, False),
        ("norm", norm, "running"),
        ("smooth", smooth, "none"),
    ):
        if given != usual:
            raise UsageError(f"{option} {given}: not supported with --target boxes; leave it out")
    if sink.suffix.lower() == ".safetensors":
        raise UsageError(
            f"{sink}: target boxes has several maps per frame; write a clip or a folder of pictures"
        )


def explain_clip(
    source: Source,
    sink: Path,
    explainer: BoxExplainer,
    *,
    max_height: int | None = None,
    codec: str = "auto",
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Draws the boxes of every frame of an opened source, and the heat for each.

    Returns:
        The number of boxes, seconds, and what :class:`fastcam.video.pipeline.Report` has.
    """
    started, boxes = time.perf_counter(), 0
    with source, Interrupts() as interrupts:
        made = open_sink(sink, source, codec)
        with reporting(source, made), made, interrupts.allowed():
            for frame in source:
                found = explainer(_shrunk(frame.rgb().cpu(), max_height).numpy())
                boxes += len(found.detections)
                made.write(_explained(frame, found))
                progress()
    seconds = time.perf_counter() - started
    return {**outcome(source, made), "boxes": boxes, "seconds": seconds, "padded": made.padded}


def _shrunk(picture: Tensor, max_height: int | None) -> Tensor:
    """(H, W, 3), or that of a smaller height."""
    height, width = picture.shape[:2]
    if max_height is None or height <= max_height:
        return picture
    size = max_height, max(1, round(width * max_height / height))
    return resized(picture.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0).contiguous()


def _explained(frame: Frame, found: Found) -> ExplainedFrame:
    """The frame as sinks take it, named after its surest box."""
    surest = found.detections[0] if found.detections else Detection([], -1, "", 0.0)
    return ExplainedFrame(
        frame,
        found.maps.amax(0) if found.detections else torch.zeros(found.picture.shape[:2]),
        (0.0, 1.0),
        surest.label,
        surest.name,
        surest.score,
        surest.score,
        lambda _: found.every(),
    )
