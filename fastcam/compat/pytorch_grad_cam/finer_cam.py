"""Finer-CAM: the evidence for a class that similar classes do not share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.grad_cam import GradCAM
from fastcam.compat.pytorch_grad_cam.utils.model_targets import FinerWeightedTarget
from fastcam.dropin.pytorch_grad_cam.finer import finer_map, finer_targets, ranks_there
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions


class FinerCAM:
    """The map of S_c minus the scores of the most similar classes, weighted by probability.

    Zhang et al. 2025, arXiv 2501.11309.

    Args:
        base_method: the class that computes the map.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAM,
    ) -> None:
        self.base_cam = base_method(model, target_layers, reshape_transform)
        self.compute_input_gradient = self.base_cam.compute_input_gradient
        self.uses_gradients = self.base_cam.uses_gradients

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        return self.forward(*args, **kwargs)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self.base_cam.__exit__(*exception)

    def forward(
        self,
        input_tensor: Any,
        targets: TargetFunctions | None = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] | None = None,
        target_idx: int | None = None,
    ) -> Array:
        """Maps (N, *S) in the form of the base method.

        Args:
            targets: as for the base method; None for Finer-CAM's targets.
            alpha: the weight of the other classes.
            comparison_categories: the other classes, as ranks by the distance of their score from
                S_c: 1 is the closest; None for 1, 2 and 3. Ranks beyond the last class are ignored.
            target_idx: c, for all images; None for each image's top class.
        """

        def choose(outputs: Tensor) -> TargetFunctions:
            if targets is not None:
                return targets
            ranks = ranks_there(comparison_categories, outputs)
            return finer_targets(outputs, alpha, ranks, target_idx, FinerWeightedTarget)

        def otherwise() -> Array:
            outputs = self.base_cam.activations_and_grads(input_tensor.to(self.base_cam.device))
            return self.base_cam.forward(input_tensor, choose(outputs), eigen_smooth)

        return finer_map(self, input_tensor, choose, eigen_smooth, otherwise)
