"""Coherency, complexity and ROAD of maps, and their harmonic mean.

Poppi et al. 2021, arXiv 2104.10252; How to Evaluate and Refine your CAM, 2026, arXiv 2605.14641.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.metrics.road import ROADCombined
from fastcam.dropin.pytorch_grad_cam.metrics import Target

Array = NDArray[Any]

_EPS = 1e-8


def batch_pearson_coherency(A: Array, B: Array) -> Array:
    """(N,): the Pearson correlation of A[n] and B[n]; 0 if one is constant."""
    first, second = (m.reshape(len(m), -1) for m in (A, B))
    first, second = (m - m.mean(axis=1, keepdims=True) for m in (first, second))
    count = first.shape[1] - 1
    spread = np.sqrt((first**2).sum(axis=1) / count) * np.sqrt((second**2).sum(axis=1) / count)
    correlation: Array = (first * second).sum(axis=1) / count / (spread + _EPS)
    return correlation


class Complexity:
    """The mean magnitude of each map: how much of the image it covers. Low is good."""

    def __call__(self, grayscale_cams: Array) -> Array:
        """(N,), for maps (N, H, W)."""
        magnitudes: Array = np.abs(grayscale_cams.reshape(len(grayscale_cams), -1))
        return magnitudes.sum(axis=1) / magnitudes.shape[1]


class Coherency:
    """(1 + r) / 2, r the correlation of a map with the map of the masked image. High is good."""

    def __call__(
        self,
        input_tensor: Tensor,
        grayscale_cams: Array,
        targets: Sequence[Target] | None,
        model: nn.Module,
        base_method: Any,
    ) -> Array:
        """(N,).

        Args:
            input_tensor: (N, C, H, W).
            grayscale_cams: (N, H, W), the images' maps by ``base_method``.
            targets: passed to ``base_method``.
            model: not used, because ``base_method`` has it.
            base_method: called with ``input_tensor`` and ``targets``; returns the maps of the
                masked images.
        """
        masks = torch.from_numpy(grayscale_cams).unsqueeze(1).to(input_tensor.device)
        masked = base_method(input_tensor=input_tensor * masks, targets=targets)
        return (batch_pearson_coherency(masked, grayscale_cams) + 1) / 2


class ARCC:
    """3 / (1 / coherency + 1 / (1 - complexity) + 1 / (2 ROAD, in [0, 1])). High is good."""

    def __init__(
        self, base_method: Any, road_percentiles: Sequence[float] = (20, 40, 60, 80)
    ) -> None:
        self.complexity = Complexity()
        self.coherency = Coherency()
        self.road = ROADCombined(percentiles=road_percentiles)
        self.base_method = base_method

    def __call__(
        self,
        input_tensor: Tensor,
        grayscale_cams: Array,
        targets: Sequence[Target],
        model: nn.Module,
    ) -> Array:
        """(N,), arguments as for :class:`Coherency`."""
        complexity = self.complexity(grayscale_cams)
        coherency = self.coherency(input_tensor, grayscale_cams, targets, model, self.base_method)
        road = self.road(input_tensor, grayscale_cams, targets, model)
        parts = (coherency, 1 - complexity, (2 * road).clip(0, 1))
        score: Array = 3 / np.sum([1 / (part + _EPS) for part in parts], axis=0)
        return score
