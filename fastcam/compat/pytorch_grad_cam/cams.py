"""The CAM classes that are a formula of activations and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM, projected
from fastcam.compat.pytorch_grad_cam.run import Array, maps_by, weighing
from fastcam.compat.pytorch_grad_cam.utils.svd_on_activations import (
    get_2d_projection_kernel,
    get_2d_projection_with_sign_correction,
)

Reshape = Callable[[Any], Tensor] | None


def _over(array: Array) -> tuple[int, ...]:
    """The axes of the positions of (N, C, *S)."""
    if array.ndim not in (4, 5):
        raise ValueError(
            f"activations, grads: got {array.ndim} dimensions, expected (N, C, H, W) or "
            "(N, C, D, H, W)"
        )
    return tuple(range(2, array.ndim))


class _Formula(BaseCAM):
    """Weights, or the map itself, from activations and gradients alone."""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> Array:
        return self._weights(activations, grads)

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        return self._image(activations, grads, eigen_smooth)

    def _weights(self, activations: Array, grads: Array) -> Array:
        raise NotImplementedError

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        weights = self._weights(activations, grads)
        products = weights.reshape(*weights.shape, *[1] * len(_over(activations))) * activations
        return projected(products) if eigen_smooth else products.sum(axis=1)


class _OfGradients(_Formula):
    def __init__(
        self, model: nn.Module, target_layers: list[nn.Module], reshape_transform: Reshape = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)


@maps_by(weighing("gradcam"))
class GradCAM(_OfGradients):
    """w_k = mean g; Selvaraju et al. 2017, arXiv 1610.02391, equation 1."""

    def _weights(self, activations: Array, grads: Array) -> Array:
        return np.mean(grads, axis=_over(grads))


@maps_by(weighing("gradcam++-signed", eps=1e-6))
class GradCAMPlusPlus(_OfGradients):
    """w_k = sum alpha ReLU(g), alpha = g^2 / (2 g^2 + g^3 sum(A) + 1e-6), 0 where g is 0.

    Chattopadhyay et al. 2018, arXiv 1710.11063, equation 19.
    """

    def _weights(self, activations: Array, grads: Array) -> Array:
        axes = _over(grads)
        total = activations.sum(axis=axes, keepdims=True)
        alpha = grads**2 / (2 * grads**2 + total * grads**3 + 1e-6)
        return (np.where(grads != 0, alpha, 0) * np.maximum(grads, 0)).sum(axis=axes)


@maps_by(weighing("xgradcam", eps=1e-7))
class XGradCAM(_OfGradients):
    """w_k = sum(g A) / (sum(A) + 1e-7); Fu et al. 2020, arXiv 2008.02312, equation 8."""

    def _weights(self, activations: Array, grads: Array) -> Array:
        axes = _over(grads)
        total = activations.sum(axis=axes, keepdims=True)
        return (grads * activations / (total + 1e-7)).sum(axis=axes)


class _Elementwise(_OfGradients):
    """M = sum_k of something of g and A at each position."""

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        products = self._products(activations, grads)
        return projected(products) if eigen_smooth else products.sum(axis=1)

    def _products(self, activations: Array, grads: Array) -> Array:
        raise NotImplementedError


@maps_by(weighing("hirescam"))
class HiResCAM(_Elementwise):
    """M = sum_k g A; Draelos and Carin 2020, arXiv 2011.08891."""

    def _products(self, activations: Array, grads: Array) -> Array:
        return grads * activations


@maps_by(weighing("gradcam-elementwise"))
class GradCAMElementWise(_Elementwise):
    """M = sum_k ReLU(g A)."""

    def _products(self, activations: Array, grads: Array) -> Array:
        return np.maximum(grads * activations, 0)


@maps_by(weighing("layercam"))
class LayerCAM(_Elementwise):
    """M = sum_k ReLU(g) A; Jiang et al. 2021, IEEE Transactions on Image Processing 30."""

    def _products(self, activations: Array, grads: Array) -> Array:
        return np.maximum(grads, 0) * activations


class EigenCAM(_Formula):
    """The first principal component of A; Muhammad and Yeasin 2020, arXiv 2008.00299."""

    def __init__(
        self, model: nn.Module, target_layers: list[nn.Module], reshape_transform: Reshape = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        return projected(activations)


class EigenGradCAM(_OfGradients):
    """The first principal component of g A."""

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        return projected(grads * activations)


class SegEigenCAM(_OfGradients):
    """The first principal component of |g| A, turned where its least value is the larger one."""

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        component: Array = get_2d_projection_with_sign_correction(np.abs(grads) * activations)
        return component


class KPCA_CAM(_Formula):
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

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        component: Array = get_2d_projection_kernel(activations, self.kernel, self.gamma)
        return component


class FEM(_Formula):
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

    def _image(self, activations: Array, grads: Array, eigen_smooth: bool) -> Array:
        axes = _over(activations)
        mean = activations.mean(axis=axes, keepdims=True)
        rare = activations > mean + self.k * activations.std(axis=axes, keepdims=True)
        return (rare.mean(axis=axes, keepdims=True) * activations).sum(axis=1)


class RandomCAM(_OfGradients):
    """w_k uniform in [-1, 1], from numpy's global generator."""

    def _weights(self, activations: Array, grads: Array) -> Array:
        return np.random.uniform(-1, 1, size=grads.shape[:2])
