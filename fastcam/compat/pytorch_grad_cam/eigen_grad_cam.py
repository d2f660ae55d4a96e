"""Eigen-Grad-CAM: the first principal component of g A."""

from __future__ import annotations

from typing import Any

from fastcam.compat.pytorch_grad_cam.formulas import OfGradients
from fastcam.dropin.pytorch_grad_cam.projection import (
    get_2d_projection,
)
from fastcam.dropin.pytorch_grad_cam.run import Array


class EigenGradCAM(OfGradients):
    """The first principal component of g A."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Array,
        grads: Array,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        component: Array = get_2d_projection(grads * activations)
        return component
