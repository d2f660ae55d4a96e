"""From pictures to a network's input by resizing, cropping and normalizing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam.errors import FastcamError, UsageError
from fastcam.pictures.render import Region

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST = 2**27  # pixels of a resized picture


class Transform(ABC):
    """Converts pictures to a network's input and knows which part of them the network sees.

    Attributes:
        origin: where its values come from, for people.
        assumed: whether the model may have been trained with other values.
    """

    origin: str
    assumed: bool

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, h, w) float32."""
        return self.normalized(self.fitted(pictures))

    @abstractmethod
    def fitted(self, pictures: Tensor) -> Tensor:
        """Changes the size: (N, H, W, 3) uint8 -> (N, 3, h, w), of any dtype."""

    @abstractmethod
    def normalized(self, images: Tensor) -> Tensor:
        """Converts what :meth:`fitted` returns to the network's input, float32."""

    @abstractmethod
    def region(self, height: int, width: int) -> Region:
        """The rectangle of a picture of this size that the input covers.

        It exceeds the picture if the picture is padded.
        """

    @abstractmethod
    def steps(self, height: int, width: int) -> dict[str, Any]:
        """What happens to a picture of this size.

        Returns:
            "resize", the (height, width) that the picture is resized to; "crop", those of the
            input; "mean", "std" and "interpolation", None if unknown.
        """

    def sized(self, side: int) -> Transform:
        """The same preprocessing for a square input.

        Raises:
            UsageError: if the preprocessing is a function.
        """
        raise self._fixed("size")

    def whole(self, longest: int | None = None) -> Transform:
        """The same preprocessing for the whole picture; raises like :meth:`sized`.

        The crop becomes the shorter side.

        Args:
            longest: the longer side is cut to this number of shorter sides; None for no cut.
        """
        raise self._fixed("crop")

    def scaled(
        self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> Transform:
        """The same preprocessing with another mean or standard deviation; raises likewise."""
        raise self._fixed("mean and std")

    def _fixed(self, argument: str) -> UsageError:
        return UsageError(
            f"{argument}: cannot be changed, since {self.origin} is a function; give preprocess "
            "another one"
        )

    def report(self, height: int, width: int) -> dict[str, Any]:
        """:meth:`steps` and "origin"."""
        origin = f"assumed: {self.origin}" if self.assumed else self.origin
        return {**self.steps(height, width), "origin": origin}


@dataclass(frozen=True)
class Preprocessing(Transform):
    """Converts pictures to the network's input: resize, centre crop, normalize.

    Attributes:
        resize: (height, width) that the resized picture covers, keeping its aspect ratio; None to
            keep the size.
        crop: (height, width) of the centre crop; a side that is shorter stays. None for no crop.
        stretch: whether to resize to exactly ``resize``, ignoring the aspect ratio.
        mean, std: of the three channels, for values in [0, 1].
        interpolation: "bilinear" or "bicubic".
        origin, assumed: see :class:`Transform`.
    """

    resize: tuple[int, int] | None = (256, 256)
    crop: tuple[int, int] | None = (224, 224)
    stretch: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    origin: str = field(default="Preprocessing(...)", compare=False)
    assumed: bool = field(default=False, compare=False)

    def fitted(self, pictures: Tensor) -> Tensor:
        images = pictures.permute(0, 3, 1, 2)
        size = self._resized(*images.shape[2:])
        if size != images.shape[2:]:
            images = resized(images, size, self.interpolation)
        (height, width), (top, left) = self._input(size), self._offset(size)
        return images[:, :, top : top + height, left : left + width]

    def normalized(self, images: Tensor) -> Tensor:
        """Normalizes by ``mean`` and ``std``: (N, 3, h, w), uint8 -> float32."""
        mean, std = (
            torch.tensor(each, device=images.device).view(3, 1, 1) for each in (self.mean, self.std)
        )
        return (images / 255 - mean) / std

    def region(self, height: int, width: int) -> Region:
        size = self._resized(height, width)
        (rows, columns), (top, left) = self._input(size), self._offset(size)
        down, across = height / size[0], width / size[1]  # picture pixels per resized pixel
        return Region(
            round(top * down),
            round(left * across),
            round((top + rows) * down),
            round((left + columns) * across),
        )

    def steps(self, height: int, width: int) -> dict[str, Any]:
        size = self._resized(height, width)
        return {
            "resize": list(size),
            "crop": list(self._input(size)),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
        }

    def sized(self, side: int) -> Preprocessing:
        """The same preprocessing for a square input, with the same crop ratio."""
        if self.crop is None:
            return replace(self, resize=(side, side))
        resize = self.resize and (
            round(side * self.resize[0] / self.crop[0]),
            round(side * self.resize[1] / self.crop[1]),
        )
        return replace(self, resize=resize, crop=(side, side))

    def whole(self, longest: int | None = None) -> Preprocessing:
        if self.resize is None or self.crop is None:
            return replace(self, crop=None)
        if self.stretch and self.resize == self.crop:
            return self
        height, width = self.crop
        cut = None if longest is None else (longest * height, longest * width)
        return replace(self, resize=self.crop, crop=cut, stretch=False)

    def scaled(
        self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> Preprocessing:
        return replace(self, mean=mean or self.mean, std=std or self.std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if self.stretch:
            return self.resize
        # integer arithmetic, as in torchvision
        if self.resize[0] * width >= self.resize[1] * height:
            return self.resize[0], self.resize[0] * width // height
        return self.resize[1] * height // width, self.resize[1]

    def _input(self, resized: tuple[int, int]) -> tuple[int, int]:
        if self.crop is None:
            return resized
        return min(self.crop[0], resized[0]), min(self.crop[1], resized[1])

    def _offset(self, resized: tuple[int, int]) -> tuple[int, int]:
        height, width = self._input(resized)
        return round((resized[0] - height) / 2), round((resized[1] - width) / 2)


ASSUMED = Preprocessing(origin="ImageNet's values", assumed=True)
"""For a network that comes without preprocessing."""


def resized(images: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resizes with antialiasing ("bilinear" or "bicubic"): (N, C, H, W) -> (N, C, *size), uint8.

    Raises:
        FastcamError: if the result is huge, as for a picture that is long and one pixel wide.
    """
    if size[0] * size[1] > _LARGEST:
        before, after = (f"{width}x{height}" for height, width in (images.shape[2:], size))
        raise FastcamError(
            f"a picture of {before} pixels would be resized to {after}: cut a less narrow part out"
        )
    if images.is_cuda:  # torch interpolates uint8 only on a CPU
        large = F.interpolate(images.float(), size, mode=interpolation, antialias=True)
        return large.round_().clamp_(0, 255).byte()
    return F.interpolate(images, size, mode=interpolation, antialias=True)
