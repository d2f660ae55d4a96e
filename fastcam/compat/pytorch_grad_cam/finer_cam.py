"""Finer-CAM: what speaks for a class and not for the classes like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.cams import GradCAM
from fastcam.compat.pytorch_grad_cam.run import Array, Choose, TargetFunctions, explain
from fastcam.compat.pytorch_grad_cam.utils.model_targets import FinerWeightedTarget


class FinerCAM:
    """The map of S_c less the scores of the classes nearest to it, weighed by their probability.

    Zhang et al. 2025, arXiv 2501.11309.

    Args:
        base_method: the class whose map it is.
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
        """Maps (N, *S) as those of the base method.

        Args:
            targets: as for the base method; None for the finer ones.
            alpha: how much the other classes count.
            comparison_categories: which they are: 1 for the class with the score nearest to S_c;
                None for 1, 2 and 3. Those that there are not are left out.
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


def finer_map(
    finer: Any,
    input_tensor: Any,
    choose: Choose,
    eigen_smooth: bool,
    otherwise: Callable[[], Array],
) -> Array:
    """The maps of a FinerCAM object; arguments as for :func:`explain`."""
    name = f"pytorch_grad_cam.{type(finer).__name__}"
    maps: Array = explain(finer.base_cam, input_tensor, choose, eigen_smooth, otherwise, name)
    return maps


def ranks_there(ranks: Sequence[int] | None, outputs: Tensor) -> list[int]:
    """Those ranks that the outputs have a class for; by default of 1, 2 and 3."""
    return [rank for rank in ((1, 2, 3) if ranks is None else ranks) if rank < outputs.shape[-1]]


def finer_targets(
    outputs: Tensor, alpha: float, ranks: Sequence[int], class_id: int | None, target: Any
) -> TargetFunctions:
    """One ``target`` an image: its class, and those of the given ranks by distance to its score."""
    scores = outputs.detach().cpu().numpy()
    of_class = scores.max(axis=-1) if class_id is None else scores[:, class_id]
    nearest = np.argsort(np.abs(scores - of_class[:, None]), axis=-1)
    return [target(int(row[0]), [int(row[rank]) for rank in ranks], alpha) for row in nearest]
