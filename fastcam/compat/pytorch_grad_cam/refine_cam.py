"""RefineCAM: refines the map of a deep layer with the finer maps of shallow layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.grad_cam_plusplus import GradCAMPlusPlus
from fastcam.dropin.pytorch_grad_cam.refine import product_of_maps
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions


class RefineCAM:
    """The product of several layers' maps; arXiv 2605.14641.

    Args:
        base_method: the class whose maps are multiplied.
        kwargs: further arguments of its constructor.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        base_method: type[BaseCAM] = GradCAMPlusPlus,
        **kwargs: Any,
    ) -> None:
        self.base_cam_per_layer = [
            base_method(model, [layer], reshape_transform, **kwargs) for layer in target_layers
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input_tensor: Any,
        targets: TargetFunctions | None = None,
        eigen_smooth: bool = False,
    ) -> Array:
        """Maps (N, *S) in [0, 1], float32; see :func:`product_of_maps` for ``eigen_smooth``."""
        return product_of_maps(self, input_tensor, targets, eigen_smooth)
