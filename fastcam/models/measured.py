"""Any function of a picture as preprocessing; which part of the picture it keeps is measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastcam.errors import FastcamError, UsageError, first_line
from fastcam.models.preprocessing import Transform
from fastcam.pictures import Picture
from fastcam.pictures.render import Region

Array = NDArray[np.float64]

_SMALLEST = 8  # pixels; below, interpolation leaves no straight ramp
_FEWEST = 4  # pixels of the input on each side, so that a line can be fitted
_COARSE = 8  # cells on each side, for a coarse look at a picture
_SUPPORT = 3  # the reach of the widest usual filter, Lanczos, in pixels of the coarser grid


@dataclass(frozen=True)
class _Measurement:
    region: Region
    resize: tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float | None, ...]
    std: tuple[float | None, ...]
    black: Array
    """(C, h, w): what becomes of a black picture."""
    gain: Array
    """(C, h, w): what becomes of a white picture, less ``black``."""
    inside: tuple[slice, slice]
    """The rows and columns of the input that show the picture."""


class MeasuredTransform(Transform):
    """A function of one picture as preprocessing, such as torchvision's, timm's or an HF processor.

    Grey ramps from left to right and from top to bottom tell which part of a picture each pixel of
    the network's input comes from, to 0.2 % of the picture. They are sent through the function once
    per picture size.

    Args:
        function: a PIL picture (RGB) -> a tensor (3, h, w) or (1, 3, h, w), or a mapping with such
            a tensor as "pixel_values".
        origin: its name, for people.

    Raises:
        UsageError: when it is used, if it does anything to positions but cropping, padding and
            resizing, if it is random, if its crop depends on the content of the picture, or if
            the result is not linear in the grey values.
        FastcamError: when it is used, if it raises an exception, or if a side of a picture is
            shorter than 8 pixels.
    """

    assumed = False

    def __init__(self, function: Callable[[Any], Any], origin: str | None = None) -> None:
        self.function = function
        self.origin = origin or str(getattr(function, "__qualname__", type(function).__qualname__))
        self._known: dict[tuple[int, int], _Measurement] = {}

    def __deepcopy__(self, memo: Any) -> MeasuredTransform:
        """Itself: copies of a model for other threads share it."""
        return self

    def fitted(self, pictures: Tensor) -> Tensor:
        """Applies the function: (N, H, W, 3) uint8 -> (N, 3, h, w) float32."""
        measured = self._measured(*pictures.shape[1:3])
        inputs = [self._apply(each.cpu().numpy()) for each in pictures]
        for picture, image in zip(pictures, inputs, strict=True):
            if image.shape[1:] != measured.crop:
                raise self._refusal("the size of its output depends on the content of the picture")
            if not _shows(measured, picture.cpu(), image):
                raise self._refusal("its crop depends on the content of the picture")
        return torch.stack(inputs).to(pictures.device)

    def normalized(self, images: Tensor) -> Tensor:
        """The images: the function has normalized them."""
        return images

    def region(self, height: int, width: int) -> Region:
        return self._measured(height, width).region

    def steps(self, height: int, width: int) -> dict[str, Any]:
        measured = self._measured(height, width)
        return {
            "resize": list(measured.resize),
            "crop": list(measured.crop),
            "mean": list(measured.mean),
            "std": list(measured.std),
            "interpolation": None,
        }

    def _measured(self, height: int, width: int) -> _Measurement:
        if (height, width) not in self._known:
            self._known[height, width] = self._measure(height, width)
        return self._known[height, width]

    def _measure(self, height: int, width: int) -> _Measurement:
        if min(height, width) < _SMALLEST:
            raise FastcamError(
                f"preprocessing {self.origin}: cannot be measured on a picture of {width}x{height} "
                f"pixels, expected at least {_SMALLEST} on each side"
            )
        across, down = _ramp(height, width), _ramp(width, height).T
        with _random_state_kept() as is_random:
            black, white = (
                self._grey(np.full((height, width), grey, np.uint8)) for grey in (0, 255)
            )
            if not (np.isfinite(black).all() and np.isfinite(white).all()):
                raise self._refusal("its output for a black or white picture is not finite")
            gain = white - black  # (C, h, w)
            energy = (gain**2).sum(0)
            inside = self._inside(energy)
            # the grey value that each pixel of the input came from, in [0, 1]
            found = [
                ((self._grey(ramp) - black) * gain).sum(0)[inside]
                / np.maximum(energy[inside], energy.max() / 1000)
                for ramp in (across, down, across)
            ]
        if not np.isfinite(found).all():
            raise self._refusal("its output for a grey ramp is not finite")
        if is_random() or not np.array_equal(found[0], found[2]):
            raise self._refusal("it is random, or at least draws random numbers")
        left, right, resized_width = self._line(found[0], inside[1], gain.shape[2], width)
        top, bottom, resized_height = self._line(found[1].T, inside[0], gain.shape[1], height)
        middle = tuple(slice((each.start + each.stop) // 2, None) for each in inside)
        zero, one = (each[(slice(None), *middle)][:, 0, 0] for each in (black, white))
        with np.errstate(divide="ignore", invalid="ignore"):
            std = 1 / (one - zero)
            mean = 0 - zero * std
        return _Measurement(
            Region(top, left, bottom, right),
            (resized_height, resized_width),
            (gain.shape[1], gain.shape[2]),
            _numbers(mean),
            _numbers(std),
            black,
            gain,
            inside,
        )

    def _inside(self, energy: Array) -> tuple[slice, slice]:
        """The rows and columns of the input that depend on the picture; the others are padding."""
        depends = energy > energy.max() / 4
        spans = []
        for axis in (1, 0):
            (places,) = np.nonzero(depends.any(axis))
            if not len(places):
                raise self._refusal(
                    "a black and a white picture become the same, so it ignores the picture or "
                    "standardizes each one by itself"
                )
            spans.append(slice(int(places[0]), int(places[-1]) + 1))
        rows, columns = spans
        small = min(rows.stop - rows.start, columns.stop - columns.start) < _FEWEST
        if (
            small or not depends[rows, columns][1:-1, 1:-1].all()
        ):  # the corners of a blurred edge are weak
            raise self._refusal("its output does not show the picture as a rectangle")
        return rows, columns

    def _line(self, found: Array, inside: slice, total: int, extent: int) -> tuple[int, int, int]:
        """Where the input begins and ends on one axis of the picture.

        Args:
            found: (across, along), the value of a ramp along this axis, in [0, 1].
            inside: the pixels of the input's axis that ``found`` covers.
            total: the extent of the input's axis.
            extent: the picture's.

        Returns:
            The first pixel, the one behind the last, and the extent that the picture is resized to.
        """
        across, along = found.shape
        place = found * (extent - 1)  # in pixels of the picture
        level = (extent - 1) / 255
        where = np.arange(along) - (along - 1) / 2
        slope = 0.0
        margin = along // 3
        for _ in range(2):  # the second time with the margin that the filter needs
            middle = slice(margin, along - margin)
            slope, centre = np.polyfit(where[middle], place[:, middle].mean(0), 1)
            reach = _SUPPORT * max(1, 1 / max(slope, 1e-9))
            margin = min(int(np.ceil(reach)), along // 3)
        pixel = max(slope, 1.0)  # the coarser of the two grids
        off = np.abs(place - (centre + slope * where))
        tilt = np.polyfit(np.arange(across), place[:, middle].mean(1), 1)[0] if across > 1 else 0
        straight = off[:, middle].max() <= 1.5 * level + pixel
        ends = off.max() <= 1.5 * level + _SUPPORT * pixel
        level_rows = abs(tilt) * (across - 1) <= 0.5 * level + pixel
        if slope <= level / along or not (straight and ends and level_rows):
            raise self._refusal(
                "it does more to positions than cropping, padding and resizing, or changes grey "
                "values in another way than by a factor and an offset"
            )
        # pixel j of the input covers [j, j + 1), and its centre comes from centre + 1/2
        first = centre + 0.5 + slope * (where[0] - 0.5 - inside.start)
        last = first + slope * total
        tolerance = max(0.5, 0.25 * level, 0.25 * slope)
        begin, end = (
            edge if abs(each - edge) <= tolerance else round(float(each))
            for each, edge in ((first, 0), (last, extent))
        )
        whole = (begin, end) == (0, extent)
        return begin, end, total if whole else round(float(extent / slope))

    def _grey(self, grey: NDArray[np.uint8]) -> Array:
        """The function of a grey picture (H, W), as (C, h, w)."""
        return self._apply(np.repeat(grey[..., None], 3, 2)).double().numpy()

    def _apply(self, picture: Picture) -> Tensor:
        """(H, W, 3) -> (C, h, w) float32, on the CPU."""
        try:
            from PIL import Image
        except ImportError:
            raise FastcamError(
                f"preprocessing {self.origin}: requires Pillow: pip install pillow"
            ) from None
        try:
            made = self.function(Image.fromarray(picture))
        except Exception as error:  # user code may raise anything
            raise FastcamError(
                f"preprocessing {self.origin}: {type(error).__name__}: {first_line(error)}"
            ) from error
        if isinstance(made, Mapping):
            made = made.get("pixel_values")
        if isinstance(made, np.ndarray):
            made = torch.from_numpy(made)
        if not isinstance(made, Tensor):
            raise UsageError(
                f"preprocessing {self.origin}: returned {type(made).__name__}, expected a tensor "
                "(3, h, w)"
            )
        image = made[0] if made.dim() == 4 and len(made) == 1 else made
        if image.dim() != 3 or len(image) not in (1, 3) or not image.is_floating_point():
            raise UsageError(
                f"preprocessing {self.origin}: returned {tuple(made.shape)} of {made.dtype}, "
                "expected (3, h, w) in floating point"
            )
        return image.detach().cpu().float()

    def _refusal(self, problem: str) -> UsageError:
        return UsageError(
            f"preprocessing {self.origin}: {problem}, so it is unknown where in the picture a map "
            "belongs: return LoadedModel(module, Preprocessing(...)) instead, and let the module "
            "do what Preprocessing does not"
        )


def _shows(measured: _Measurement, picture: Tensor, image: Tensor) -> bool:
    """Whether the input shows the measured part of the picture, as far as a coarse look tells.

    Args:
        measured: for pictures of this size.
        picture: (H, W, 3) uint8.
        image: (C, h, w), what became of it.
    """
    rows, columns = measured.inside
    gain = measured.gain[:, rows, columns]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (
            image.double().numpy()[:, rows, columns] - measured.black[:, rows, columns]
        ) / gain
    if not np.isfinite(values).all():
        return True  # a channel that the function leaves out
    region, (height, width) = measured.region, measured.crop
    down, across = region.height / height, region.width / width
    top, bottom = (round(region.top + each * down) for each in (rows.start, rows.stop))
    left, right = (round(region.left + each * across) for each in (columns.start, columns.stop))
    part = picture[max(top, 0) : max(bottom, 1), max(left, 0) : max(right, 1)]
    part = part.permute(2, 0, 1).double() / 255
    expected = _coarse(part)
    # what a fine pattern can add to a cell if the function takes single pixels of it
    squares = _coarse(part**2)
    spread = (squares - expected**2).clamp(min=0).sqrt().mean().item()
    noise = spread / math.sqrt(max(min(values.shape[1:]) / _COARSE, 1))
    found = _coarse(torch.from_numpy(values))
    error = (_best_mix(expected, found) - found).abs().mean().item()
    contrast = (found - found.mean((1, 2), keepdim=True)).abs().mean().item()
    return error <= max(0.03, 0.4 * contrast, noise)


def _coarse(image: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(image, _COARSE)


def _best_mix(channels: Tensor, wanted: Tensor) -> Tensor:
    """The mixes of channels (3, h, w) that are nearest to those wanted, (C, h, w).

    A function may swap channels or turn a picture grey. Black stays black: there is no constant.
    """
    columns = channels.flatten(1).T
    mixed = columns @ torch.linalg.lstsq(columns, wanted.flatten(1).T, driver="gelsd").solution
    return mixed.T.reshape(wanted.shape)


def _ramp(height: int, width: int) -> NDArray[np.uint8]:
    """Grey values from 0 on the left to 255 on the right, (H, W).

    Rows round up or down in turns, by the golden ratio, so that the mean of many rows is exact.
    """
    ramp = np.linspace(0, 255, width, dtype=np.float32)
    turns = np.arange(height, dtype=np.float32)[:, None] * 0.618034 % 1
    return np.floor(ramp).astype(np.uint8) + (ramp % 1 > turns)


def _numbers(values: Array) -> tuple[float | None, ...]:
    return tuple(round(float(each), 4) if np.isfinite(each) else None for each in values)


@contextmanager
def _random_state_kept() -> Iterator[Callable[[], bool]]:
    """Restores the random state of torch, numpy and Python at the end.

    Yields a function that tells, after the block, whether the block has drawn random numbers.
    """
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    drawn: list[bool] = []
    try:
        yield lambda: any(drawn)
    finally:
        drawn.append(not torch.equal(torch_state, torch.get_rng_state()))
        pairs = zip(numpy_state, np.random.get_state(), strict=True)
        drawn.append(not all(np.array_equal(before, after) for before, after in pairs))
        drawn.append(python_state != random.getstate())
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
