"""SESS: combines the maps of windows of the enlarged image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.grad_cam import GradCAM
from fastcam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from fastcam.dropin.pytorch_grad_cam.image import scale_cam_image
from fastcam.dropin.pytorch_grad_cam.maps import top_classes
from fastcam.dropin.pytorch_grad_cam.run import Array
from fastcam.dropin.pytorch_grad_cam.sess import map_of_windows

Window = tuple[int, int, int, int]
"""Left, top, and the width and height of the enlarged image that contains it."""


class SESS:
    """The mean map of windows of the image at several sizes, weighted by the windows' scores.

    Tursun et al. 2022, arXiv 2207.01769. Finds several objects, at sizes that the network was not
    trained on.

    Args:
        base_method: the class whose maps are combined.
        scales: the shorter side of the image at each size; by default ``num_scales`` sizes, from
            ``window_size`` in steps of ``scale_step_ratio * window_size``.
        window_size: the side of a window; by default the shorter side of the image.
        step_size: the distance between windows; by default ``window_size``.
        pre_filter_ratio: the share of windows to discard, those with the lowest scores.
        theta: the mean ignores map values up to this threshold.
        pool: "mean", or "max" for the largest value.
        smooth: whether to blur the result.
        use_softmax_scores: whether targets take probabilities instead of the output.
        batch_size: the number of windows per run.
        kwargs: further arguments of the base method's constructor.

    Raises:
        ValueError: if ``pool``, ``num_scales`` or ``pre_filter_ratio`` is invalid.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAM,
        scales: list[int] | None = None,
        num_scales: int = 12,
        scale_step_ratio: float = 2.0 / 7.0,
        window_size: int | None = None,
        step_size: int | None = None,
        pre_filter_ratio: float = 0.0,
        theta: float = 0.0,
        pool: str = "mean",
        smooth: bool = True,
        use_softmax_scores: bool = True,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        if pool not in ("mean", "max"):
            raise ValueError(f'pool: got {pool!r}, expected "mean" or "max"')
        if not 0.0 <= pre_filter_ratio < 1.0:
            raise ValueError(f"pre_filter_ratio: got {pre_filter_ratio}, expected it in [0, 1)")
        if num_scales < 1:
            raise ValueError(f"num_scales: got {num_scales}, expected at least 1")
        self.base_cam = base_method(model, target_layers, reshape_transform, **kwargs)
        self.model = self.base_cam.model
        self.device = self.base_cam.device
        self.scales = scales
        self.num_scales = num_scales
        self.scale_step_ratio = scale_step_ratio
        self.window_size = window_size
        self.step_size = step_size
        self.pre_filter_ratio = pre_filter_ratio
        self.theta = theta
        self.pool = pool
        self.smooth = smooth
        self.use_softmax_scores = use_softmax_scores
        self.batch_size = batch_size

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[Any] | None = None,
        eigen_smooth: bool = False,
    ) -> Array:
        """Maps (N, H, W) in [0, 1], float32, of images (N, C, H, W)."""
        images = input_tensor.detach().to(self.device)
        each: Sequence[Any] = [None] * len(images) if targets is None else targets
        if len(each) != len(images):
            raise ValueError(f"targets: got {len(each)}, expected {len(images)}, one per image")
        maps = [
            self.forward_single_image(image, target, eigen_smooth)
            for image, target in zip(images.split(1), each, strict=True)
        ]
        return scale_cam_image(np.array(maps, np.float32))

    def forward_single_image(
        self, input_tensor: Tensor, target: Any, eigen_smooth: bool = False
    ) -> Array:
        """The map (H, W) of an image (1, C, H, W), before normalization."""
        return map_of_windows(self, SESS, input_tensor, target, eigen_smooth)

    def get_scales(self, window_size: int) -> list[int]:
        """The shorter side of the image at each size."""
        if self.scales is not None:
            return self.scales
        step = round(window_size * self.scale_step_ratio)
        return [window_size + step * i for i in range(self.num_scales)]

    def collect_patches(
        self, input_tensor: Tensor, window_size: int, step_size: int
    ) -> tuple[list[Tensor], list[Window]]:
        """The windows of an image (1, C, H, W), and their coordinates."""
        patches: list[Tensor] = []
        coordinates: list[Window] = []
        for scale in self.get_scales(window_size):
            if scale < window_size:
                raise ValueError(f"scales: got {scale}, expected at least the window {window_size}")
            enlarged = _resized(input_tensor, scale)
            height, width = enlarged.shape[-2:]
            for x, y in sliding_window(height, width, step_size, window_size):
                patches.append(enlarged[:, :, y : y + window_size, x : x + window_size])
                coordinates.append((x, y, width, height))
        return patches, coordinates

    def get_target(self, input_tensor: Tensor) -> Any:
        """The target of the class with the highest score."""
        with torch.no_grad():
            (target,) = top_classes(self.model(input_tensor), ClassifierOutputTarget)
        return target

    def get_scores(self, patches: list[Tensor], target: Any) -> Array:
        """The target's score of each window; negative scores become 0."""
        scores = []
        with torch.no_grad():
            for start in range(0, len(patches), self.batch_size):
                outputs = self.model(torch.cat(patches[start : start + self.batch_size]))
                if self.use_softmax_scores:
                    outputs = torch.softmax(outputs, dim=-1)
                scores.append(target(outputs).cpu().numpy())
        found: Array = np.maximum(np.concatenate(scores), 0)
        return found

    def paste_cam(self, cam: Array, coordinates: Window, target_size: tuple[int, int]) -> Array:
        """A map (H, W) of the image with the window's map at its place, and 0 elsewhere."""
        x, y, width, height = coordinates
        whole = np.zeros((height, width), np.float32)
        whole[y : y + cam.shape[0], x : x + cam.shape[1]] = cam
        return np.asarray(cv2.resize(whole, target_size[::-1]))

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self.base_cam.__exit__(*exception)


def sliding_window(
    height: int, width: int, step_size: int, window_size: int
) -> list[tuple[int, int]]:
    """The top left corners of windows that cover an image; the last ones end at its border."""
    down, across = (window_starts(length, step_size, window_size) for length in (height, width))
    return [(x, y) for y in down for x in across]


def window_starts(length: int, step_size: int, window_size: int) -> list[int]:
    """The start of each window along one axis."""
    starts: list[int] = []
    for start in range(0, length, step_size):
        if start + window_size >= length:
            return [*starts, max(length - window_size, 0)]
        starts.append(start)
    return starts


def _resized(images: Tensor, shorter: int) -> Tensor:
    """Resizes as torchvision's ``resize`` does."""
    height, width = images.shape[-2:]
    longer = int(shorter * max(height, width) / min(height, width))
    size = (longer, shorter) if height > width else (shorter, longer)
    if size == (height, width):
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
