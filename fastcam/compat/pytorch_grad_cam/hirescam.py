"""HiResCAM: g A at each position."""

from __future__ import annotations

from fastcam.compat.pytorch_grad_cam.base_cam import by_kernel
from fastcam.compat.pytorch_grad_cam.formulas import Elementwise
from fastcam.dropin.pytorch_grad_cam.maps import METHODS


@by_kernel
class HiResCAM(Elementwise):
    """M = sum_k g A; Draelos and Carin 2020, arXiv 2011.08891."""

    _formula = METHODS["HiResCAM"]
