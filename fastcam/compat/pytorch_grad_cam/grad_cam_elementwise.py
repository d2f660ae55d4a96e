"""Elementwise Grad-CAM: positive g A at each position."""

from __future__ import annotations

from fastcam.compat.pytorch_grad_cam.base_cam import by_kernel
from fastcam.compat.pytorch_grad_cam.formulas import Elementwise
from fastcam.dropin.pytorch_grad_cam.maps import METHODS


@by_kernel
class GradCAMElementWise(Elementwise):
    """M = sum_k ReLU(g A)."""

    _formula = METHODS["GradCAMElementWise"]
