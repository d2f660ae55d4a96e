"""Grad-CAM++: channels weighted by their positive gradients."""

from __future__ import annotations

from fastcam.compat.pytorch_grad_cam.base_cam import by_kernel
from fastcam.compat.pytorch_grad_cam.formulas import Weighted
from fastcam.dropin.pytorch_grad_cam.maps import METHODS


@by_kernel
class GradCAMPlusPlus(Weighted):
    """w_k = sum alpha ReLU(g), alpha = g^2 / (2 g^2 + g^3 sum(A) + 1e-6), 0 where g is 0.

    Chattopadhyay et al. 2018, arXiv 1710.11063, equation 19.
    """

    _formula = METHODS["GradCAMPlusPlus"]
