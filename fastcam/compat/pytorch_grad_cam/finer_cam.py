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

    def forward(
        self,
        input_tensor: Any,
        targets: TargetFunctions | None = None,
        eigen_smooth: bool = False,
        alpha: float = 1,
        comparison_categories: Sequence[int] = (1, 2, 3),
        target_idx: int | None = None,
    ) -> Array:
        """Maps (N, *S) as those of the base method.

        Args:
            targets: as for the base method; None for the finer ones.
            alpha: how much the other classes count.
            comparison_categories: which they are: 1 for the class with the score nearest to S_c.
            target_idx: c, for all images; None for each image's top class.
        """
        return finer_map(
            self,
            input_tensor,
            targets,
            eigen_smooth,
            lambda outputs: finer_targets(
                outputs, alpha, comparison_categories, target_idx, FinerWeightedTarget
            ),
        )


def finer_map(
    finer: Any,
    input_tensor: Any,
    targets: TargetFunctions | None,
    eigen_smooth: bool,
    choose: Choose,
) -> Array:
    """The maps of a FinerCAM object, with the targets of ``choose`` where there are none."""
    base = finer.base_cam

    def otherwise() -> Array:
        outputs = base.activations_and_grads(input_tensor.to(base.device))
        chosen = choose(outputs) if targets is None else targets
        maps: Array = base.forward(input_tensor, chosen, eigen_smooth)
        return maps

    maps: Array = explain(
        base,
        input_tensor,
        choose if targets is None else lambda outputs: targets,
        eigen_smooth,
        otherwise,
        f"pytorch_grad_cam.{type(finer).__name__}",
    )
    return maps


def finer_targets(
    outputs: Tensor, alpha: float, ranks: Sequence[int], class_id: int | None, target: Any
) -> TargetFunctions:
    """One ``target`` an image: its class, and those of the given ranks by distance to its score."""
    scores = outputs.detach().cpu().numpy()
    of_class = scores.max(axis=-1) if class_id is None else scores[:, class_id]
    nearest = np.argsort(np.abs(scores - of_class[:, None]), axis=-1)
    return [target(int(row[0]), [int(row[rank]) for rank in ranks], alpha) for row in nearest]
