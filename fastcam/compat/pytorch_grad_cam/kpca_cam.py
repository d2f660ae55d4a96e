"""KPCA-CAM: the first kernel principal component of A."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.formulas import Reshape
from fastcam.dropin.pytorch_grad_cam.projection import (
    get_2d_projection_kernel,
)
from fastcam.dropin.pytorch_grad_cam.run import Array


class KPCA_CAM(BaseCAM):
    """The first kernel principal component of A; Karmani et al. 2024, arXiv 2410.00267.

    Args:
        kernel, gamma: as for ``sklearn.decomposition.KernelPCA``.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Reshape = None,
        kernel: str = "sigmoid",
        gamma: float | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.kernel = kernel
        self.gamma = gamma

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
        component: Array = get_2d_projection_kernel(activations, self.kernel, self.gamma)
        return component
