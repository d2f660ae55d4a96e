"""XGrad-CAM: channels weighted by sum(g A) / sum(A)."""

from __future__ import annotations

from fastcam.compat.pytorch_grad_cam.base_cam import by_kernel
from fastcam.compat.pytorch_grad_cam.formulas import Weighted
from fastcam.dropin.pytorch_grad_cam.maps import METHODS


@by_kernel
class XGradCAM(Weighted):
    """w_k = sum(g A) / (sum(A) + 1e-7); Fu et al. 2020, arXiv 2008.02312, equation 8."""

    _formula = METHODS["XGradCAM"]
