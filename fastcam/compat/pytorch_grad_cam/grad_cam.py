"""Grad-CAM: channels weighted by their mean gradient."""

from __future__ import annotations

from fastcam.compat.pytorch_grad_cam.base_cam import by_kernel
from fastcam.compat.pytorch_grad_cam.formulas import Weighted
from fastcam.dropin.pytorch_grad_cam.maps import METHODS


@by_kernel
class GradCAM(Weighted):
    """w_k = mean g; Selvaraju et al. 2017, arXiv 1610.02391, equation 1."""

    _formula = METHODS["GradCAM"]
