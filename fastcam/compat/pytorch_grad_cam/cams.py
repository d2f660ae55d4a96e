"""The CAM classes that are a formula of activations and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops, reference
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM, by_kernel
from fastcam.dropin.pytorch_grad_cam.maps import METHODS
from fastcam.dropin.pytorch_grad_cam.projection import (
    get_2d_projection,
    get_2d_projection_kernel,
    get_2d_projection_with_sign_correction,
)
from fastcam.dropin.pytorch_grad_cam.run import Array
from fastcam.methods.activation import rare_shares

Reshape = Callable[[Any], Tensor] | None


class _OfGradients(BaseCAM):
    _formula: ClassVar[tuple[str, float]]
    """The method of :func:`fastcam.ops.cam`, and its eps."""

    def __init__(
        self, model: nn.Module, target_layers: list[nn.Module], reshape_transform: Reshape = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)


class _Weighted(_OfGradients):
    """M = sum_k w_k A^k."""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Array, grads: Array
    ) -> Array:
        """(N, C)."""
        a, g = _tensors(activations, grads)
        weights: Array = reference.channel_weights(a, g, *self._formula).numpy()
        return weights


class _Elementwise(_OfGradients):
    """M = the sum over k of something of g and A at each position."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Array,
        grads: Array,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        a, g = _tensors(activations, grads)
        method, _ = self._formula
        if not eigen_smooth:
            return ops.cam(a, g, method, relu=False).numpy()
        # a map of each channel alone is what the sum is of
        channels = ops.cam(
            a.flatten(0, 1).unsqueeze(1), g.flatten(0, 1).unsqueeze(1), method, relu=False
        )
        component: Array = get_2d_projection(channels.reshape(a.shape).numpy())
        return component


@by_kernel
class GradCAM(_Weighted):
    """w_k = mean g; Selvaraju et al. 2017, arXiv 1610.02391, equation 1."""

    _formula = METHODS["GradCAM"]


@by_kernel
class GradCAMPlusPlus(_Weighted):
    """w_k = sum alpha ReLU(g), alpha = g^2 / (2 g^2 + g^3 sum(A) + 1e-6), 0 where g is 0.

    Chattopadhyay et al. 2018, arXiv 1710.11063, equation 19.
    """

    _formula = METHODS["GradCAMPlusPlus"]


@by_kernel
class XGradCAM(_Weighted):
    """w_k = sum(g A) / (sum(A) + 1e-7); Fu et al. 2020, arXiv 2008.02312, equation 8."""

    _formula = METHODS["XGradCAM"]


@by_kernel
class HiResCAM(_Elementwise):
    """M = sum_k g A; Draelos and Carin 2020, arXiv 2011.08891."""

    _formula = METHODS["HiResCAM"]


@by_kernel
class GradCAMElementWise(_Elementwise):
    """M = sum_k ReLU(g A)."""

    _formula = METHODS["GradCAMElementWise"]


@by_kernel
class LayerCAM(_Elementwise):
    """M = sum_k ReLU(g) A; Jiang et al. 2021, IEEE Transactions on Image Processing 30."""

    _formula = METHODS["LayerCAM"]


class EigenCAM(BaseCAM):
    """The first principal component of A; Muhammad and Yeasin 2020, arXiv 2008.00299."""

    def __init__(
        self, model: nn.Module, target_layers: list[nn.Module], reshape_transform: Reshape = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Array,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        component: Array = get_2d_projection(activations)
        return component


class EigenGradCAM(_OfGradients):
    """The first principal component of g A."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Array,
        grads: Array,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        component: Array = get_2d_projection(grads * activations)
        return component


class SegEigenCAM(_OfGradients):
    """The first principal component of |g| A, turned where its least value is the larger one."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Array,
        grads: Array,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        component: Array = get_2d_projection_with_sign_correction(np.abs(grads) * activations)
        return component


class KPCA_CAM(BaseCAM):
    """The first kernel principal component of A; Karmani et al. 2024, arXiv 2410.00267.

    Args:
        kernel, gamma: as scikit-learn's KernelPCA takes them.
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
        targets: Any,
        activations: Array,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        component: Array = get_2d_projection_kernel(activations, self.kernel, self.gamma)
        return component


class FEM(BaseCAM):
    """w_k = the share of positions with A > mean + k std; Fuad et al. 2020, IPTA.

    Args:
        k: how many standard deviations above the mean an activation is rare.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Reshape = None,
        k: float = 2,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.k = k

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Array,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        a = torch.from_numpy(activations)
        return ops.weighted_sum(a, rare_shares(a, self.k), relu=False).numpy()


class RandomCAM(_OfGradients):
    """w_k uniform in [-1, 1], from numpy's global generator."""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Array
    ) -> Array:
        """(N, C)."""
        return np.random.uniform(-1, 1, size=grads.shape[:2])


def _tensors(activations: Array, grads: Array) -> tuple[Tensor, Tensor]:
    if activations.ndim not in (4, 5):
        raise ValueError(
            f"activations: got {activations.ndim} dimensions, expected (N, C, H, W) or "
            "(N, C, D, H, W); reshape_transform may help"
        )
    return torch.from_numpy(activations), torch.from_numpy(grads)
