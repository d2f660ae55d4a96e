"""Eigen-CAM: the first principal component of A."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.formulas import Reshape
from fastcam.dropin.pytorch_grad_cam.projection import (
    get_2d_projection,
)
from fastcam.dropin.pytorch_grad_cam.run import Array


class EigenCAM(BaseCAM):
    """The first principal component of A; Muhammad and Yeasin 2020, arXiv 2008.00299."""

    def __init__(
        self, model: nn.Module, target_layers: list[nn.Module], reshape_transform: Reshape = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Array,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        component: Array = get_2d_projection(activations)
        return component
