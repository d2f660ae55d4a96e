"""The change of a target's score when the image is perturbed according to its map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastcam.dropin.pytorch_grad_cam.metrics import (
    Array,
    Scores,
    Target,
    confidence_change,
    mean_change,
    without_least_relevant,
    without_most_relevant,
)


class PerturbationConfidenceMetric:
    """The change of the score when ``perturbation(image, map)`` replaces each image."""

    def __init__(self, perturbation: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.perturbation = perturbation

    def __call__(
        self,
        input_tensor: Tensor,
        cams: Array,
        targets: Sequence[Target],
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """(N,): after - before, or only after with ``return_diff=False``.

        Args:
            input_tensor: (N, C, H, W).
            cams: (N, H, W) in [0, 1].
            targets: one per image, called with its row of the model's output.
            model: the network, in evaluation mode.
            return_visualization: whether to return the changed images, (N, C, H, W), too.
            return_diff: whether to subtract the score before.
        """
        return confidence_change(
            self, input_tensor, cams, targets, model, return_visualization, return_diff
        )


class RemoveMostRelevantFirst:
    """Imputes pixels at or above a percentile of the map, or Otsu's threshold ("auto")."""

    def __init__(
        self, percentile: float | str, imputer: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.percentile = percentile
        self.imputer = imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), for an image (C, H, W) and its map (H, W)."""
        return without_most_relevant(self, input_tensor, mask)


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """The same for 1 - map."""

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), for an image (C, H, W) and its map (H, W)."""
        return without_least_relevant(self, input_tensor, mask)


class AveragerAcrossThresholds:
    """The mean of ``imputer(percentile)``, a metric, over percentiles."""

    def __init__(
        self,
        imputer: Callable[[float], Any],
        percentiles: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    ) -> None:
        self.imputer = imputer
        self.percentiles = percentiles

    def __call__(
        self, input_tensor: Tensor, cams: Array, targets: Sequence[Target], model: nn.Module
    ) -> Scores:
        """(N,), arguments as for :class:`PerturbationConfidenceMetric`."""
        return mean_change(self, input_tensor, cams, targets, model)
