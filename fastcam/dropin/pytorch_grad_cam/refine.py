"""RefineCAM: the product of several layers' maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcam.dropin.pytorch_grad_cam.image import scale_cam_image
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions
from fastcam.dropin.settings import settings


def product_of_maps(
    refine: Any,
    input_tensor: Any,
    targets: TargetFunctions | None = None,
    eigen_smooth: bool = False,
) -> Array:
    """The maps (N, *S) of a RefineCAM object.

    pytorch-grad-cam passes ``eigen_smooth`` as the base method's ``aug_smooth``; with
    :attr:`Settings.fix` it is passed as ``eigen_smooth``.
    """
    smooth = (False, eigen_smooth) if settings.fix else (eigen_smooth,)
    maps = [cam(input_tensor, targets, *smooth) for cam in refine.base_cam_per_layer]
    return scale_cam_image(np.prod(maps, axis=0))
