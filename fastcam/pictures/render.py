"""Renders heatmaps over pictures, captions and grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastcam import ops
from fastcam.errors import UsageError

Picture = NDArray[np.uint8]  # (H, W, 3), RGB

_PANEL = 360  # longer side of a picture in a grid, in pixels
_COLUMNS = 5
MOST_PANELS: Final = 50  # of a grid, so that viewers open it
_STRIP = 30  # height of the title above a panel
_GAP = 12
_TITLE = 16  # height of its letters
_FADE = 0.1, 0.8  # the heats between which the opacity grows
_SMALLEST = 9  # height of letters, in pixels
_LEVELS = (0.25, 0.5, 0.75)  # of contours
_HALF = 0.5  # the level of the outline

Layout = Literal["overlay", "side-by-side", "heat", "contours", "outline"]
LAYOUTS: Final[tuple[str, ...]] = get_args(Layout)
Enlargement = Literal["bilinear", "bicubic"]


class Region(NamedTuple):
    """A rectangle of a picture in pixels; ``bottom`` and ``right`` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


class Title(NamedTuple):
    """A caption "name: note"; the name is shortened if it does not fit."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Style:
    """How maps are drawn over pictures.

    Attributes:
        layout: "overlay"; "side-by-side" (the picture on the left, the overlay on the right);
            "heat" (no picture); "contours" (the lines at 25, 50 and 75 % of the heat); or
            "outline" (the line at 50 %).
        colormap: the name of an OpenCV colormap.
        alpha: the opacity of the hottest colour, in [0, 1].
        fade: whether the opacity follows the heat, so that cold parts stay as they were; otherwise
            it is ``alpha`` everywhere.
        enlarge: "bilinear", or "bicubic" for smoother heat.
        colorbar: whether a strip below the picture shows the colours and the raw values of the
            coldest and the hottest.

    Raises:
        UsageError: if the layout, the colormap or the enlargement is unknown, ``alpha`` is outside
            [0, 1], or the outline, which has no colours, is to have a colorbar.
    """

    layout: str = "overlay"
    colormap: str = "turbo"
    alpha: float = 0.65
    fade: bool = True
    enlarge: str = "bilinear"
    colorbar: bool = False

    def __post_init__(self) -> None:
        check_colormap(self.colormap)
        _check_alpha(self.alpha)
        for name, value, known in (
            ("layout", self.layout, LAYOUTS),
            ("enlargement", self.enlarge, get_args(Enlargement)),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value}; choose from {', '.join(known)}")
        if self.colorbar and self.layout == "outline":
            raise UsageError("colorbar: the outline has no colours; choose another layout")


def colormaps() -> list[str]:
    """The names of OpenCV's colormaps."""
    import cv2

    prefix = "COLORMAP_"
    return [name.removeprefix(prefix).lower() for name in dir(cv2) if name.startswith(prefix)]


def check_colormap(name: str) -> None:
    """Raises UsageError if OpenCV has no colormap of this name."""
    if name not in colormaps():
        raise UsageError(f"unknown colormap {name}; choose from {', '.join(colormaps())}")


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha: got {alpha}, expected a value in [0, 1]")


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


def opacities(alpha: float, fade: bool, device: torch.device) -> Tensor:
    """(256,) float32, the opacity of each colour from cold to hot.

    ``alpha`` everywhere; or growing smoothly from 0 below a heat of 0.1 to ``alpha`` at 0.8.
    """
    if not fade:
        return torch.full((256,), alpha, device=device)
    cold, hot = _FADE
    rise = ((torch.linspace(0, 1, 256, device=device) - cold) / (hot - cold)).clamp(0, 1)
    return alpha * rise.square() * (3 - 2 * rise)


def overlay(
    images: Tensor, maps: Tensor, colormap: str = "turbo", alpha: float = 0.65, fade: bool = True
) -> Tensor:
    """Overlays heatmaps on images.

    Args:
        images: (N, 3, H, W) or (N, H, W, 3), RGB; uint8, or floating point in [0, 1]. The ambiguous
            shape (N, 3, H, 3) is read as (N, H, W, 3).
        maps: (N, h, w) in [0, 1], upsampled linearly; NaN counts as 0.
        colormap: the name of an OpenCV colormap.
        alpha: the opacity of the hottest colour, in [0, 1].
        fade: whether the opacity follows the heat, so that cold parts stay as they were; otherwise
            it is ``alpha`` everywhere.

    Returns:
        uint8, in the shape of ``images``.

    Raises:
        UsageError: if OpenCV has no colormap of this name, or ``alpha`` is outside [0, 1].
    """
    _check_alpha(alpha)
    on = images.device
    return ops.overlay(images, maps, color_table(colormap, on), opacities(alpha, fade, on))


def heat(pictures: Tensor, maps: Tensor, region: Region, style: Style | None = None) -> Tensor:
    """Draws heatmaps on a region of the pictures and halves the brightness outside.

    Args:
        pictures: (N, H, W, 3) uint8, RGB.
        maps: (N, h, w) in [0, 1], enlarged to the region; NaN counts as 0.
        region: the part inside the network's input.
        style: the colours. "side-by-side" is drawn as "overlay"; :func:`arranged` adds the picture.

    Returns:
        (N, H, W, 3) uint8.
    """
    style = style or Style()
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    seen = pictures[:, rows, columns]
    result = torch.zeros_like(pictures) if style.layout == "heat" else pictures >> 1
    if style.enlarge == "bicubic":
        maps = _bicubic(maps.nan_to_num(0), seen.shape[1:3]).clamp(0, 1)
    if style.layout == "heat":
        drawn = overlay(torch.zeros_like(seen), maps, style.colormap, 1.0, fade=False)
    elif style.layout == "contours":
        drawn = _contours(seen, maps, color_table(style.colormap, seen.device))
    elif style.layout == "outline":
        white = torch.full((256, 3), 255, dtype=torch.uint8, device=seen.device)
        drawn = _lines(seen, _enlarged(maps, seen), [_HALF], white)
    else:
        drawn = overlay(seen, maps, style.colormap, style.alpha, style.fade)
    result[:, rows, columns] = drawn
    return result


def enlarged(maps: Tensor, size: tuple[int, int], enlarge: str) -> Tensor:
    """Raw maps (N, h, w) -> (N, *size), brought to [0, 1] by their minimum and maximum."""
    if enlarge == "bicubic":
        return ops.normalize(_bicubic(maps, size))
    return ops.upsample(maps, size)


def arranged(
    picture: Picture,
    drawn: Picture,
    style: Style,
    values: tuple[float, float],
    title: Title | None = None,
) -> Picture:
    """What a style has around the heat: the picture on its left, and a colorbar.

    Args:
        picture, drawn: (H, W, 3), RGB, without and with the heat.
        style: see :class:`Style`.
        values: the raw values of the coldest and the hottest colour.
        title: a legend for the colorbar.
    """
    if style.layout == "side-by-side":
        drawn = np.concatenate((picture, drawn), 1)
    if style.colorbar:
        drawn = np.concatenate((drawn, _colorbar(drawn.shape, style, values, title)), 0)
    return drawn


def _bicubic(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps.unsqueeze(1), tuple(size), mode="bicubic").squeeze(1)


def caption(picture: Picture, title: Title) -> None:
    """Writes the title into the top left corner, white on black, in place."""
    height, width = picture.shape[:2]
    size = _letters(height, width)
    margin = max(size // 4, 2)
    line = _fit(title, int(0.95 * width) - 2 * margin, size)
    right, bottom = _width(line, size) + 2 * margin, round(1.3 * size) + 2 * margin
    picture[:bottom, :right] = 0
    _draw(picture[:bottom, :right], line, (margin, size + margin - 1), size, 255)


def grid(panels: Sequence[tuple[Title, Picture]]) -> Picture:
    """Arranges pictures of one size in rows of at most five, each below its title.

    Raises:
        ValueError: if there are more than :data:`MOST_PANELS`.
    """
    import cv2

    if len(panels) > MOST_PANELS:
        raise ValueError(f"panels: got {len(panels)}, expected at most {MOST_PANELS}")

    height, width = panels[0][1].shape[:2]
    zoom = _PANEL / max(height, width)
    height, width = max(round(height * zoom), 1), max(round(width * zoom), 1)
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    across, down = max(width, _PANEL // 2) + _GAP, _STRIP + height + _GAP
    rows = -(-len(panels) // _COLUMNS)
    columns = -(-len(panels) // rows)
    page = np.full((rows * down, columns * across + _GAP, 3), 255, np.uint8)
    for index, (title, picture) in enumerate(panels):
        top, left = index // columns * down + _STRIP, index % columns * across + _GAP
        _draw(page, _fit(title, across - _GAP, _TITLE), (left, top - 10), _TITLE, 0)
        shown = cv2.resize(picture, (width, height), interpolation=method)
        page[top : top + height, left : left + width] = shown
    return page


def _contours(pictures: Tensor, maps: Tensor, table: Tensor) -> Tensor:
    return _lines(pictures, _enlarged(maps, pictures), _LEVELS, table)


def _enlarged(maps: Tensor, pictures: Tensor) -> Tensor:
    """(N, h, w) -> (N, H, W) without a change of the range."""
    size = tuple(pictures.shape[1:3])
    maps = maps.nan_to_num(0).clamp(0, 1).unsqueeze(1)
    return F.interpolate(maps, size, mode="bilinear").squeeze(1)


def _lines(pictures: Tensor, heat: Tensor, levels: Sequence[float], table: Tensor) -> Tensor:
    """Draws the lines of equal heat in their colours between black edges.

    A pixel's distance to a line is about |heat - level| / |gradient of the heat|.
    """
    padded = F.pad(heat.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    right = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    steepness = (down.square() + right.square()).sqrt().clamp(min=1e-6)
    width = max(min(pictures.shape[1:3]) / 160, 1.5)
    drawn = pictures.float()
    for level in levels:
        distance = (heat - level).abs() / steepness
        line = table[round(level * 255)]
        for color, half in ((0 * line, width / 2 + 1), (line, width / 2)):
            share = (half + 0.5 - distance).clamp(0, 1).unsqueeze(-1)
            drawn = drawn + share * (color - drawn)
    return drawn.round().to(torch.uint8)


def _colorbar(
    shape: tuple[int, ...], style: Style, values: tuple[float, float], title: Title | None
) -> Picture:
    """A white strip as wide as the picture: [title] / low, the colours, high."""
    height, width = shape[:2]
    size = _letters(height, width)
    margin, row = max(size // 4, 2), round(1.5 * size)
    rows = 1 if title is None else 2
    strip = np.full((rows * row + 2 * margin, width, 3), 255, np.uint8)
    if title is not None:
        line = _fit(title, width - 2 * margin, size)
        _draw(strip, line, (margin, margin + size), size, 0)
    low, high = (f"{value:.2g}" for value in values)
    base = strip.shape[0] - margin - row + size
    side = max(_width(low, size), _width(high, size), _width("0.00", size)) + 2 * margin
    if width > 3 * side:
        _draw(strip, low, (side - margin - _width(low, size), base), size, 0)
        _draw(strip, high, (width - side + margin, base), size, 0)
    else:
        side = min(margin, (width - 1) // 2)  # no room for the values
    ramp = np.linspace(0, 255, width - 2 * side).round().astype(np.uint8)
    cpu = torch.device("cpu")
    plain = style.layout in ("heat", "contours")
    shares = opacities(1.0 if plain else style.alpha, style.fade and not plain, cpu).numpy()
    colors = color_table(style.colormap, cpu).numpy()
    shown = 255 + shares[:, None] * (colors.astype(np.float32) - 255)
    bar = strip[base - size + size // 8 : base + size // 8, side : width - side]
    bar[:] = shown.round()[ramp]
    bar[[0, -1]] = bar[:, [0, -1]] = 96  # a frame, for what is white at the cold end
    return strip


def _letters(height: int, width: int) -> int:
    """The height of letters on a picture, in pixels."""
    return max(round(min(height / 24, width / 12)), _SMALLEST)


def _fit(title: Title, width: int, size: int) -> str:
    """The title in one line of at most ``width`` pixels."""
    name, note = " ".join(title.name.split()), title.note
    line = f"{name}: {note}" if name and note else name or note
    while _width(line, size) > width and name:
        name = name[:-1]
        line = name.rstrip() + "\N{HORIZONTAL ELLIPSIS}" + (f" {note}" if note else "")
    return line


def _font() -> Any:
    """OpenCV's own font for most writing systems."""
    import cv2

    return cv2.FontFace("sans")


def _width(line: str, size: int) -> int:
    import cv2

    left, _, width, _ = cv2.getTextSize((0, 0), line, (0, 0), _font(), size)
    return left + width


def _draw(picture: Picture, line: str, at: tuple[int, int], size: int, grey: int) -> None:
    """Writes a line of text whose baseline begins ``at`` (x, y)."""
    import cv2

    canvas = np.ascontiguousarray(picture)
    cv2.putText(canvas, line, at, (grey,) * 3, _font(), size)
    picture[:] = canvas
