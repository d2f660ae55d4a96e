"""Seg-Eigen-CAM: the first principal component of |g| A."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcam.compat.pytorch_grad_cam.formulas import OfGradients
from fastcam.dropin.pytorch_grad_cam.projection import (
    get_2d_projection_with_sign_correction,
)
from fastcam.dropin.pytorch_grad_cam.run import Array


class SegEigenCAM(OfGradients):
    """The first principal component of |g| A, negated if its minimum has the larger magnitude."""

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
        component: Array = get_2d_projection_with_sign_correction(np.abs(grads) * activations)
        return component
