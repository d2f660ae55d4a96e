"""The change of the score when the image is multiplied by its map."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fastcam.compat.pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
)
from fastcam.dropin.pytorch_grad_cam.metrics import Scores


def multiply_tensor_with_cam(input_tensor: Tensor, cam: Tensor) -> Tensor:
    """The image (C, H, W) times its map (H, W)."""
    return input_tensor * cam


class CamMultImageConfidenceChange(PerturbationConfidenceMetric):
    """The score of the image times its map, minus the score of the image."""

    def __init__(self) -> None:
        super().__init__(multiply_tensor_with_cam)


class DropInConfidence(CamMultImageConfidenceChange):
    """ReLU(before - after); unlike the average drop of papers, not divided by before."""

    def __call__(self, *args: Any, **kwargs: Any) -> Scores:
        """(N,), arguments as for :class:`PerturbationConfidenceMetric`."""
        change = PerturbationConfidenceMetric.__call__(self, *args, **kwargs)
        drop: Scores = np.maximum(-change, 0)
        return drop


class IncreaseInConfidence(CamMultImageConfidenceChange):
    """1 if the score rises, else 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> Scores:
        """(N,), arguments as for :class:`PerturbationConfidenceMetric`."""
        change = PerturbationConfidenceMetric.__call__(self, *args, **kwargs)
        rose: Scores = np.greater(change, 0).astype(np.float32)
        return rose
