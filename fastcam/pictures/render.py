"""Renders heatmaps over pictures, captions and grids."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastcam import ops
from fastcam.errors import ArgumentError, UsageError
from fastcam.pictures import Picture
from fastcam.pictures.given import as_pil, is_pil, pictures_of

_PANEL = 360  # longer side of a picture in a grid, in pixels
_COLUMNS = 5
_STRIP = 30  # height of the title above a panel
_GAP = 12


class Region(NamedTuple):
    """A rectangle in pixels of a picture; ``bottom`` and ``right`` are exclusive.

    It may exceed the picture.
    """

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def within(self, height: int, width: int) -> Region:
        """The part inside a picture of this size."""
        return Region(
            max(self.top, 0), max(self.left, 0), min(self.bottom, height), min(self.right, width)
        )

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> Region:
        """The rectangle after a picture is resized, from and to (height, width)."""
        down, across = after[0] / before[0], after[1] / before[1]
        return Region(
            round(self.top * down),
            round(self.left * across),
            round(self.bottom * down),
            round(self.right * across),
        )


class Title(NamedTuple):
    """A caption "name: note"; the name is shortened if it does not fit."""

    name: str
    note: str = ""


def colormaps() -> list[str]:
    """The names of OpenCV's colormaps."""
    import cv2

    prefix = "COLORMAP_"
    return [name.removeprefix(prefix).lower() for name in dir(cv2) if name.startswith(prefix)]


def check_colormap(name: str) -> None:
    """Raises UsageError if OpenCV has no colormap of this name."""
    if name not in colormaps():
        raise UsageError(f"unknown colormap {name}; choose from {', '.join(colormaps())}")


@cache
def color_table(name: str, device: torch.device) -> Tensor:
    """An OpenCV colormap as (256, 3) uint8, RGB, from cold to hot.

    Raises:
        UsageError: if OpenCV has no colormap of this name.
    """
    import cv2

    check_colormap(name)
    ramp = np.arange(256, dtype=np.uint8)
    bgr = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}")).reshape(256, 3)
    return torch.from_numpy(bgr[:, ::-1].copy()).to(device)


def overlay(images: Any, maps: Any, colormap: str = "turbo", alpha: float = 0.5) -> Any:
    """Overlays heatmaps on images.

    Args:
        images: a tensor (N, 3, H, W) or (N, H, W, 3), RGB; uint8, or floating point in [0, 1]. The
            ambiguous shape (N, 3, H, 3) is read as (N, H, W, 3). Or one picture, a PIL image or an
            array (H, W, 3) of uint8.
        maps: a tensor or array (N, h, w) in [0, 1], upsampled linearly; NaN counts as 0. For one
            picture also (h, w).
        colormap: the name of an OpenCV colormap.
        alpha: the opacity of the heatmap, in [0, 1].

    Returns:
        uint8, in the shape of ``images``; for one picture a PIL image or an array (H, W, 3).

    Raises:
        UsageError: if OpenCV has no colormap of this name.
        ValueError: if values of the images or maps are outside [0, 1], or the shapes do not fit.
        TypeError: if the images are none of these.
    """
    maps = torch.as_tensor(maps)
    if isinstance(images, Tensor):
        if images.is_floating_point():
            _check_range("images", images)
        _check_range("maps", maps)
        return ops.overlay(images, maps, color_table(colormap, images.device), alpha)
    found = pictures_of(images)
    if found is None or isinstance(images, (list, tuple)):
        raise TypeError(
            f"images: got {type(images).__name__}, expected a tensor (N, 3, H, W) or (N, H, W, 3), "
            "a PIL image or an array (H, W, 3) of uint8"
        )
    maps = maps if maps.dim() == 3 else maps.unsqueeze(0)
    heated = overlay(torch.from_numpy(found[0])[None].to(maps.device), maps, colormap, alpha)[0]
    picture = heated.cpu().numpy()
    return as_pil(picture) if is_pil(images) else picture


def _check_range(name: str, values: Tensor) -> None:
    """Raises ValueError if a value is outside [0, 1], up to rounding; NaN is allowed."""
    if not values.numel():
        return
    low, high = values.nan_to_num(0.5).aminmax()
    slack = 1e-3
    if low < -slack or high > 1 + slack:
        raise ArgumentError(
            name,
            f"got values from {low.item():.3g} to {high.item():.3g}, expected [0, 1]; "
            + (
                "explain with normalize=True"
                if name == "maps"
                else "give the pictures from before the normalization, or divide by 255"
            ),
        )


def heat(
    pictures: Tensor, maps: Tensor, region: Region, colormap: str = "turbo", alpha: float = 0.5
) -> Tensor:
    """Overlays heatmaps on a region of the pictures and halves the brightness outside.

    Args:
        pictures: (N, H, W, 3) uint8, RGB.
        maps: (N, h, w) in [0, 1], upsampled linearly to the region; NaN counts as 0.
        region: the part that the maps cover; may exceed the pictures.
        colormap: the name of an OpenCV colormap.
        alpha: the opacity of the heatmap, in [0, 1].

    Returns:
        (N, H, W, 3) uint8.
    """
    height, width = pictures.shape[1:3]
    maps, region = visible(maps, region, height, width), region.within(height, width)
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    seen = pictures[:, rows, columns]
    result = pictures >> 1
    table = color_table(colormap, pictures.device)
    result[:, rows, columns] = ops.overlay(seen, maps, table, alpha)
    return result


def visible(maps: Tensor, region: Region, height: int, width: int) -> Tensor:
    """The maps (N, h, w) of a region, without what lies outside a picture of this size.

    Upsamples linearly only along the axes that are cut.
    """
    seen = region.within(height, width)
    if (seen.top, seen.bottom) != (region.top, region.bottom):
        tall = ops.upsample(maps, (region.height, maps.shape[2]), normalize=False)
        maps = tall[:, seen.top - region.top : seen.bottom - region.top]
    if (seen.left, seen.right) != (region.left, region.right):
        wide = ops.upsample(maps, (maps.shape[1], region.width), normalize=False)
        maps = wide[:, :, seen.left - region.left : seen.right - region.left]
    return maps


def caption(picture: Picture, title: Title) -> None:
    """Writes the title into the top left corner, white on black, in place."""
    height, width = picture.shape[:2]
    line, scale = _fit(title, width - 12, height=max(height / 24, 14))
    (across, up), down = _extent(line, scale)
    picture[: up + down + 8, : across + 12] = 0
    _draw(picture, line, (6, up + 4), scale, 255)


def grid(panels: Iterable[tuple[Title, Picture]]) -> Picture:
    """Arranges pictures of one size in rows of at most five, each below its title.

    Shrinks each picture before it takes the next one, so that an iterator keeps only one in memory.
    """
    shown = [(title, _panel(picture)) for title, picture in panels]
    height, width = shown[0][1].shape[:2]
    across, down = max(width, _PANEL // 2) + _GAP, _STRIP + height + _GAP
    rows = -(-len(shown) // _COLUMNS)
    columns = -(-len(shown) // rows)
    page = np.full((rows * down, columns * across + _GAP, 3), 255, np.uint8)
    for index, (title, picture) in enumerate(shown):
        top, left = index // columns * down + _STRIP, index % columns * across + _GAP
        line, scale = _fit(title, across - _GAP, height=16)
        _draw(page, line, (left, top - 10), scale, 0)
        page[top : top + height, left : left + width] = picture
    return page


def _panel(picture: Picture) -> Picture:
    """The picture with a longer side of 360 pixels."""
    import cv2

    height, width = picture.shape[:2]
    zoom = _PANEL / max(height, width)
    size = max(round(width * zoom), 1), max(round(height * zoom), 1)
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, size, interpolation=method)  # type: ignore[return-value]


def _fit(title: Title, width: int, height: float) -> tuple[str, float]:
    """The title in one line of at most ``width`` pixels, and the font scale."""
    scale = height / 26  # at a font scale of 1, a line is 26 pixels tall
    name, note = title.name, f": {title.note}" if title.note else ""
    line = name + note
    while _extent(line, scale)[0][0] > width and name:
        name = name[:-1]
        line = name.rstrip() + "\N{HORIZONTAL ELLIPSIS}" + note
    return line, scale


def _extent(line: str, scale: float) -> tuple[tuple[int, int], int]:
    """((width, height above the baseline), height below it), in pixels."""
    import cv2

    (width, up), down = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    return (width, up), down


def _draw(picture: Picture, line: str, at: tuple[int, int], scale: float, grey: int) -> None:
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, line, at, font, scale, (grey,) * 3, 1, cv2.LINE_AA)
