"""LayerCAM: positive gradients times A at each position."""

from __future__ import annotations

from fastcam.compat.pytorch_grad_cam.base_cam import by_kernel
from fastcam.compat.pytorch_grad_cam.formulas import Elementwise
from fastcam.dropin.pytorch_grad_cam.maps import METHODS


@by_kernel
class LayerCAM(Elementwise):
    """M = sum_k ReLU(g) A; Jiang et al. 2021, IEEE Transactions on Image Processing 30."""

    _formula = METHODS["LayerCAM"]
