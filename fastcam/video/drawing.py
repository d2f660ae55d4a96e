"""Explained frames and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastcam.errors import UsageError
from fastcam.models import Transform, resized
from fastcam.pictures import Picture, render
from fastcam.video.frame import Frame
from fastcam.video.temporal import Range

Layout = Literal["overlay", "side-by-side", "heat"]
LAYOUTS: Final[tuple[str, ...]] = get_args(Layout)

_NOTHING = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class ExplainedFrame:
    """A frame and the map of its class, drawn on demand."""

    frame: Frame
    """The frame from the source."""
    map: Tensor
    """(h, w) float32 in [0, 1], at the layer's resolution."""
    range: Range
    """The raw values that map to 0 and 1."""
    class_id: int
    name: str
    score: float
    """The logit."""
    probability: float
    drawing: Callable[[ExplainedFrame], Picture]

    @property
    def time(self) -> float:
        """Seconds."""
        return self.frame.time

    @property
    def picture(self) -> Picture:
        """(H', W', 3), RGB; drawn on each access."""
        return self.drawing(self)

    def drawn(self) -> Frame:
        """The frame with its pixels replaced by the drawing."""
        return replace(self.frame, pixels=self.picture)

    def without_pixels(self) -> ExplainedFrame:
        """A copy without the frame's pixels, to free their memory."""
        return replace(self, frame=replace(self.frame, pixels=_NOTHING))


def check_drawing(layout: str, colormap: str) -> None:
    """Raises UsageError if the layout or colormap is unknown."""
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout}; choose from {', '.join(LAYOUTS)}")
    render.check_colormap(colormap)


@dataclass(frozen=True)
class Drawing:
    """Draws explained frames.

    Args:
        preprocessing: of the network; determines the part of the frame that the map covers.
        layout: "overlay", "side-by-side" (the frame on the left, the overlay on the right) or
            "heat" (no frame).
        colormap, alpha: as in :func:`fastcam.pictures.render.overlay`.
        max_height: shrink taller frames to this height, in pixels.

    Raises:
        UsageError: if the layout or colormap is unknown.
    """

    preprocessing: Transform
    layout: str = "overlay"
    colormap: str = "turbo"
    alpha: float = 0.5
    max_height: int | None = None

    def __post_init__(self) -> None:
        check_drawing(self.layout, self.colormap)

    def __call__(self, explained: ExplainedFrame) -> Picture:
        size = explained.frame.size
        picture = self._shrunk(explained.frame.rgb().unsqueeze(0))  # (1, H, W, 3)
        heat_alone = self.layout == "heat"
        heated = render.heat(
            torch.zeros_like(picture) if heat_alone else picture,
            explained.map.unsqueeze(0).to(picture.device),
            self.preprocessing.region(*size).resized(size, (picture.shape[1], picture.shape[2])),
            self.colormap,
            1.0 if heat_alone else self.alpha,
        )
        drawn: Picture = heated[0].cpu().numpy()
        render.caption(drawn, render.Title(explained.name, f"{explained.probability:.0%}"))
        if self.layout == "side-by-side":
            return np.concatenate((picture[0].cpu().numpy(), drawn), 1)
        return drawn

    def _shrunk(self, picture: Tensor) -> Tensor:
        height, width = picture.shape[1:3]
        if self.max_height is None or height <= self.max_height:
            return picture
        size = self.max_height, max(1, round(width * self.max_height / height))
        return resized(picture.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
