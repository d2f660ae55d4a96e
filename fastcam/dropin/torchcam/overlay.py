"""Overlays a map on a picture."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement


class Blend(NamedTuple):
    """How a release of torchcam blends colors and a picture."""

    modes: tuple[str, ...]
    """The supported picture modes."""
    colors: Callable[[Any, Any], Any]
    """From a colormap and level numbers (L,) to colors (L, 4), uint8."""
    blend: Callable[[Any, Any, float], Any]
    """From colors (H, W, 3), a picture and alpha to the result."""


def overlay_mask(present: Replacement, how: Blend) -> Replacement:
    """The image blended with the color of mask^2."""
    pillow: Any = importlib.import_module("PIL.Image")
    colormaps: Any = importlib.import_module("matplotlib").colormaps

    def overlay(img: Any, mask: Any, colormap: Any = "jet", alpha: float = 0.7) -> Any:
        with counted("torchcam.utils.overlay_mask") as call:
            pictures = isinstance(img, pillow.Image) and isinstance(mask, pillow.Image)
            usual = pictures and img.mode in how.modes and isinstance(alpha, float)
            if not usual or not 0 <= alpha < 1 or not math.isfinite(alpha):
                modes = " or ".join(how.modes)
                call.leave_to("torchcam", f"no image of mode {modes}, or an alpha outside [0, 1)")
                return present(img, mask, colormap, alpha)
            if settings.fix and mask.mode == "L":
                mask = pillow.fromarray(np.asarray(mask, np.float32) / 255)
            colors = _colors(colormaps.get_cmap(colormap), how) if mask.mode == "F" else None
            if colors is None:
                call.leave_to("torchcam", "the mask's mode or the colormap is not supported")
                return present(img, mask, colormap, alpha)
            heat = np.asarray(mask.resize(img.size, resample=pillow.Resampling.BICUBIC))
            levels = heat * heat
            levels *= len(colors)
            if np.isnan(levels.max()):
                call.leave_to("torchcam", "the mask has NaN")
                return present(img, mask, colormap, alpha)
            call.why = "colors from a table"
            np.minimum(levels, len(colors) - 1, out=levels)
            return how.blend(colors.take(levels.astype(np.uint8), axis=0), img, alpha)

    return overlay


def _colors(colormap: Any, how: Blend) -> Any:
    """(levels, 3) uint8; None for over 256 levels, or if values above 1 have a separate color."""
    if colormap.N > 256:
        return None
    colors = how.colors(colormap, np.arange(colormap.N + 1))[:, :3]
    return colors[:-1] if (colors[-1] == colors[-2]).all() else None


def _by_pillow(colors: Any, image: Any, alpha: float) -> Any:
    pillow: Any = importlib.import_module("PIL.Image")
    return pillow.blend(pillow.fromarray(colors), image.convert("RGB"), alpha)


def _in_float64(colors: Any, image: Any, alpha: float) -> Any:
    pillow: Any = importlib.import_module("PIL.Image")
    mixed = alpha * np.asarray(image) + (1 - alpha) * colors
    return pillow.fromarray(mixed.astype(np.uint8))


BY_PILLOW = Blend(("L", "RGB"), lambda colormap, n: colormap(n, bytes=True), _by_pillow)
"""Since 0.5.0."""
IN_FLOAT64 = Blend(("RGB",), lambda colormap, n: (255 * colormap(n)).astype(np.uint8), _in_float64)
"""0.4.1."""
