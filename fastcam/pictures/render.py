"""Renders heatmaps over pictures, captions and grids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam import ops
from fastcam.errors import ArgumentError, UsageError
from fastcam.pictures import Picture
from fastcam.pictures.given import as_pil, is_pil, pictures_of

_PANEL = 360  # longer side of a picture in a grid, in pixels
_COLUMNS = 5
MOST_PANELS: Final = 50  # that a grid should have, so that viewers open it
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
    images: Any, maps: Any, colormap: str = "turbo", alpha: float = 0.65, fade: bool = True
) -> Any:
    """Overlays heatmaps on images.

    Args:
        images: a tensor (N, 3, H, W) or (N, H, W, 3), RGB; uint8, or floating point in [0, 1]. The
            ambiguous shape (N, 3, H, 3) is read as (N, H, W, 3). Or one picture, a PIL image or an
            array (H, W, 3) of uint8.
        maps: a tensor or array (N, h, w) in [0, 1], upsampled linearly; NaN counts as 0. For one
            picture also (h, w).
        colormap: the name of an OpenCV colormap.
        alpha: the opacity of the hottest colour, in [0, 1].
        fade: whether the opacity follows the heat, so that cold parts stay as they were; otherwise
            it is ``alpha`` everywhere.

    Returns:
        uint8, in the shape of ``images``; for one picture a PIL image or an array (H, W, 3).

    Raises:
        UsageError: if OpenCV has no colormap of this name, or ``alpha`` is outside [0, 1].
        ValueError: if values of the images or maps are outside [0, 1], or the shapes do not fit.
        TypeError: if the images are none of these.
    """
    _check_alpha(alpha)
    maps = torch.as_tensor(maps)
    if isinstance(images, Tensor):
        if images.is_floating_point():
            _check_range("images", images)
        _check_range("maps", maps)
        if maps.dim() != 3 or len(maps) != len(images):
            raise ArgumentError(
                "maps",
                f"got shape {tuple(maps.shape)} for images {tuple(images.shape)}, expected "
                f"({len(images)}, h, w)",
            )
        return _blended(images, maps, colormap, alpha, fade)
    found = pictures_of(images)
    if found is None or isinstance(images, (list, tuple)):
        raise TypeError(
            f"images: got {type(images).__name__}, expected a tensor (N, 3, H, W) or (N, H, W, 3), "
            "a PIL image or an array (H, W, 3) of uint8"
        )
    maps = maps if maps.dim() == 3 else maps.unsqueeze(0)
    batch = torch.from_numpy(found[0])[None].to(maps.device)
    picture = overlay(batch, maps, colormap, alpha, fade)[0].cpu().numpy()
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


def _blended(images: Tensor, maps: Tensor, colormap: str, alpha: float, fade: bool) -> Tensor:
    on = images.device
    return ops.overlay(images, maps, color_table(colormap, on), opacities(alpha, fade, on))


def heat(pictures: Tensor, maps: Tensor, region: Region, style: Style | None = None) -> Tensor:
    """Draws heatmaps on a region of the pictures and halves the brightness outside.

    Args:
        pictures: (N, H, W, 3) uint8, RGB.
        maps: (N, h, w) in [0, 1], enlarged to the region; NaN counts as 0.
        region: the part that the maps cover; may exceed the pictures.
        style: the colours. "side-by-side" is drawn as "overlay"; :func:`arranged` adds the picture.

    Returns:
        (N, H, W, 3) uint8.
    """
    style = style or Style()
    height, width = pictures.shape[1:3]
    if style.enlarge == "bicubic":
        maps = _bicubic(maps.nan_to_num(0), (region.height, region.width)).clamp(0, 1)
    maps, region = visible(maps, region, height, width), region.within(height, width)
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    seen = pictures[:, rows, columns]
    result = torch.zeros_like(pictures) if style.layout == "heat" else pictures >> 1
    if style.layout == "heat":
        drawn = _blended(torch.zeros_like(seen), maps, style.colormap, 1.0, False)
    elif style.layout == "contours":
        drawn = _contours(seen, maps, color_table(style.colormap, seen.device))
    elif style.layout == "outline":
        white = torch.full((256, 3), 255, dtype=torch.uint8, device=seen.device)
        drawn = _lines(seen, _enlarged(maps, seen), [_HALF], white)
    else:
        drawn = _blended(seen, maps, style.colormap, style.alpha, style.fade)
    result[:, rows, columns] = drawn
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
        _draw(page, _fit(title, across - _GAP, _TITLE), (left, top - 10), _TITLE, 0)
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
